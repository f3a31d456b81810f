import pytest

from bench.journal import Failure
from bench.passes import Observation
from bench.roofline import Bound
from bench.speed_rows import Measured, Sample, measurements
from bench.timing import Point, Timing
from tests.bench.scripted import find

MS = 10**6
CELL = [{"id": "cell", "label": "", "seed": 1}]
PARTS = {"tokenise": MS, "detokenise": MS}


def measured(times, failures=None, batch_size=8, observations=None, references=("ref",), num_sentences=4):
    """Cells with the nanoseconds of their rounds; a reference of another seed stands by."""
    cells = [{"id": name, "label": f"the {name}", "seed": 2 if name == "other" else 1} for name in times]
    timings = [
        Timing(i, Point(name, batch_size), (t // 2, t - t // 2), (6, 6), wall=1.0, foreign=0.0, parts=dict(PARTS))
        for name, rounds in times.items()
        for i, t in enumerate(rounds)
    ]
    points = [Point(name, batch_size) for name in times]
    samples = {batch_size: Sample(num_sentences)}
    return Measured(cells, references, points, samples, timings, failures or {}, observations or {})


def test_rates_are_medians_over_rounds():
    # 12 tokens and 4 sentences in 10, 20 and 40 ms: 1200, 600 and 300 tokens/s.
    rows = measurements(measured({"ref": [10 * MS, 20 * MS, 40 * MS]}))
    row = find(rows, "ref", "tokens_per_second")
    assert (row["value"], row["unit"], row["n"], row["batch_size"]) == (600, "tokens/s", 3, 8)
    assert (row["ci_low"], row["ci_high"]) == (300, 1200)  # three rounds say little
    assert find(rows, "ref", "sentences_per_second")["value"] == 200


def test_speed_ups_are_paired_by_round():
    # The machine is 1, 2 and 10 times as slow from round to round; the cell is three times as fast in each.
    times = {"ref": [30 * MS, 60 * MS, 300 * MS], "cell": [10 * MS, 20 * MS, 100 * MS]}
    rows = measurements(measured(times))
    row = find(rows, "cell", "speedup")
    assert (row["value"], row["ci_low"], row["ci_high"], row["n"]) == (3, 3, 3, 3)
    assert row["reference"] == "the ref"
    assert find(rows, "ref", "speedup")["value"] == 1


def test_only_rounds_that_both_have_are_paired():
    row = find(measurements(measured({"ref": [30 * MS, 40 * MS], "cell": [10 * MS]})), "cell", "speedup")
    assert (row["value"], row["n"], row["ci_low"]) == (3, 1, None)


def test_references_are_those_of_the_same_seed():
    rows = measurements(
        measured({"ref": [30 * MS], "other": [20 * MS], "cell": [10 * MS]}, references=["ref", "other"])
    )
    assert find(rows, "cell", "speedup")["reference"] == "the ref"
    assert find(rows, "other", "speedup")["reference"] == "the other"


def test_there_is_a_speed_up_for_each_reference():
    rows = measurements(measured({"ref": [30 * MS], "ref5": [90 * MS], "cell": [10 * MS]}, references=["ref", "ref5"]))
    assert find(rows, "cell", "speedup", reference="the ref")["value"] == 3
    assert find(rows, "cell", "speedup", reference="the ref5")["value"] == 9
    assert find(rows, "ref", "speedup", reference="the ref5")["value"] == 3


def test_a_lost_reference_leaves_the_speed_up_without_a_value():
    lost = {Point("ref", 8): Failure("oom", "no memory")}
    rows = measurements(measured({"ref": [30 * MS], "cell": [10 * MS]}, lost))
    row = find(rows, "cell", "speedup")
    assert (row["value"], row["status"], row["reason"]) == (
        None,
        "skipped",
        "the ref, the reference, has no value: oom",
    )
    assert find(rows, "cell", "tokens_per_second")["status"] == "ok"


def test_a_failed_point_has_rows_without_values_even_if_it_was_timed_before():
    lost = {Point("cell", 1): Failure("failed", "broken")}
    rows = measurements(measured({"ref": [30 * MS], "cell": [10 * MS]}, lost, batch_size=1))
    mine = [r for r in rows if r["cell"] == "cell"]
    assert {"tokens_per_second", "speedup", "latency_p50", "seconds_per_sentence", "iterations"} <= {
        r["metric"] for r in mine
    }
    assert {(r["value"], r["ci_low"], r["status"], r["reason"]) for r in mine} == {(None, None, "failed", "broken")}


def latencies(num_sentences, rounds=2):
    """Sentence i takes i + 1 ms, in every round."""
    point = Point("cell", 1)
    durations = tuple((i + 1) * MS for i in range(num_sentences))
    parts = {"tokenise": num_sentences * MS, "detokenise": 2 * num_sentences * MS}
    timings = [Timing(r, point, durations, (1,) * num_sentences, parts=parts, wall=1.0) for r in range(rounds)]
    return measurements(Measured(CELL, [], [point], {1: Sample(num_sentences)}, timings, {}, {}))


@pytest.mark.parametrize(("percentile", "least"), [(50, 7), (90, 64), (95, 130), (99, 662)])
def test_a_percentile_needs_its_number_of_distinct_sentences(percentile, least):
    # Many rounds do not help: a sentence timed again is not another sentence.
    row = find(latencies(least - 1, rounds=3), "cell", f"latency_p{percentile}")
    assert (row["value"], row["status"]) == (None, "ok")
    assert row["reason"] == f"needs {least} sentences, has {least - 1}"
    row = find(latencies(least), "cell", f"latency_p{percentile}")
    # Each of 1..n occurs twice; up to interpolation the q-th percentile is q % of n.
    assert row["value"] == pytest.approx(percentile / 100 * least, abs=1)
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert row["n"] == least


def test_latency_intervals_do_not_shrink_with_the_number_of_rounds():
    few, many = (find(latencies(100, rounds), "cell", "latency_p50") for rounds in (2, 30))
    assert many["ci_high"] - many["ci_low"] == pytest.approx(few["ci_high"] - few["ci_low"], rel=0.1)
    # The median of 100 uniform values on 0-100 has a standard error of 5: an interval about 20 wide.
    assert 15 < few["ci_high"] - few["ci_low"] < 25


def test_parts_add_up():
    rows = latencies(9)
    values = {r["part"]: r["value"] for r in rows if r["metric"] == "seconds_per_sentence"}
    # Decoding takes 1 + 2 + ... + 9 = 45 ms for 9 sentences.
    assert values == {"tokenise": 1, "decode": 5, "detokenise": 2, "end_to_end": 8}


def speech(times, batch_size=1, failures=None):
    """Rounds of 4 utterances, 2 s of audio in all; features take 3 ms of each round and detokenising 1."""
    point = Point("cell", batch_size)
    parts = {"features": 3 * MS, "detokenise": MS} if batch_size == 1 else {}
    timings = [Timing(i, point, (t // 2, t - t // 2), (6, 6), parts=parts, wall=1.0) for i, t in enumerate(times)]
    samples = {batch_size: Sample(4, audio_seconds=2.0)}
    return measurements(Measured(CELL, [], [point], samples, timings, failures or {}, {}))


def test_the_real_time_factor_sets_time_against_audio():
    # 10, 20 and 40 ms of decoding for 2 s; features and detokenisation add 4 ms to each.
    rows = speech([10 * MS, 20 * MS, 40 * MS])
    decode = find(rows, "cell", "real_time_factor", part="decode")
    assert (decode["value"], decode["ci_low"], decode["ci_high"], decode["n"]) == pytest.approx((0.01, 0.005, 0.02, 3))
    assert (decode["batch_size"], decode["unit"], decode["status"]) == (1, "", "ok")
    assert find(rows, "cell", "real_time_factor", part="end_to_end")["value"] == pytest.approx(0.012)


def test_beyond_batch_1_the_real_time_factor_is_of_decoding_alone():
    rows = [r for r in speech([20 * MS], batch_size=8) if r["metric"] == "real_time_factor"]
    assert [(r["part"], r["batch_size"], r["value"]) for r in rows] == [("decode", 8, 0.01)]


def test_parts_of_speech_begin_with_features():
    rows = speech([20 * MS, 20 * MS])
    values = {r["part"]: r["value"] for r in rows if r["metric"] == "seconds_per_sentence"}
    # Over 4 utterances: 3, 20 and 1 ms.
    assert values == {"features": 0.75, "decode": 5, "detokenise": 0.25, "end_to_end": 6}
    assert list(values) == ["features", "decode", "detokenise", "end_to_end"]


def test_speech_that_failed_has_the_rows_of_speech():
    rows = speech([], failures={Point("cell", 1): Failure("oom", "no memory")})
    found = {(r["metric"], r["part"]): (r["value"], r["status"], r["reason"]) for r in rows if r["part"]}
    parts = [("seconds_per_sentence", p) for p in ("features", "decode", "detokenise", "end_to_end")]
    assert found == dict.fromkeys(
        [*parts, ("real_time_factor", "decode"), ("real_time_factor", "end_to_end")], (None, "oom", "no memory")
    )


def test_text_has_no_real_time_factor():
    assert not [r for r in latencies(9) if r["metric"] == "real_time_factor" or r["part"] == "features"]


@pytest.mark.parametrize(
    ("foreign", "value"), [((0.3, 0.5), 40), ((-0.02, 0.01), 0), ((0.3, None), None)], ids=["used", "noise", "unknown"]
)
def test_foreign_load_is_a_share_of_one_core_over_all_timed_regions(foreign, value):
    point = Point("cell", 8)
    timings = [Timing(r, point, (MS,), (1,), wall=1.0, foreign=f) for r, f in enumerate(foreign)]
    rows = measurements(Measured(CELL, [], [point], {point.batch_size: Sample(8)}, timings, {}, {}))
    row = find(rows, "cell", "foreign_cpu")
    assert row["value"] == (value if value is None else pytest.approx(value))
    assert bool(row["reason"]) == (value is None)


@pytest.mark.parametrize(
    ("walls", "value"),
    [
        ((2.0, 9.0, 9.0), 50),  # long enough by itself
        ((0.5, 9.5, 9.0), 10),  # with the other point of its batch size
        ((0.1, 0.1, 9.8), 10),  # with all that was timed
        ((0.1, 0.1, 0.1), 1 / 0.3 * 100),
    ],
)
def test_foreign_load_of_what_is_too_short_for_ticks_is_that_of_its_surroundings(walls, value):
    points = [Point("cell", 8), Point("other", 8), Point("other", 1)]
    timings = [
        Timing(0, point, (MS,), (1,), wall=wall, foreign=float(point == points[0]), parts=dict(PARTS))
        for point, wall in zip(points, walls, strict=True)
    ]
    cells = [{**CELL[0], "id": name} for name in ("cell", "other")]
    samples = {size: Sample(8) for size in (1, 8)}
    rows = measurements(Measured(cells, [], points, samples, timings, {}, {}))
    assert find(rows, "cell", "foreign_cpu")["value"] == pytest.approx(value)


def test_peak_memory_is_the_largest_of_the_rounds():
    point = Point("cell", 8)
    timings = [Timing(r, point, (MS,), (1,), wall=1.0, peak_memory=m * 2**20) for r, m in enumerate((5, 7, 6))]
    rows = measurements(Measured(CELL, [], [point], {point.batch_size: Sample(8)}, timings, {}, {}))
    assert (find(rows, "cell", "peak_memory")["value"], find(rows, "cell", "peak_memory")["unit"]) == (7, "MiB")


def test_passes_of_companions_have_a_row_only_where_there_are_companions():
    point = Point("cell", 1)
    timings = [Timing(0, point, (MS, MS), (3, 4), parts={"tokenise": MS, "detokenise": MS}, wall=1.0)]
    for passes, expected in (({"decoder": [2, 4]}, []), ({"decoder": [2, 4], "companion": [1, 2]}, [1.5])):
        seen = {"cell": Observation(passes, [2, 4], [3, 4])}
        rows = measurements(Measured(CELL, [], [point], {point.batch_size: Sample(2)}, timings, {}, seen))
        assert [r["value"] for r in rows if r["metric"] == "companion_passes"] == expected


def test_rows_compare_the_counted_batches_with_their_own_time():
    point = Point("cell", 8)
    # Two of three batches were counted: 10 + 30 ms, then 20 + 60 ms; they must take 8 ms.
    timings = [
        Timing(i, point, (10 * k * MS, 99 * MS, 30 * k * MS), (4, 1, 6), wall=1.0, foreign=0.0)
        for i, k in enumerate((1, 2))
    ]
    bounds = {point: Bound((0, 2), flops=5000, bytes=200, seconds=0.008)}
    rows = measurements(Measured(CELL, [], [point], {point.batch_size: Sample(11)}, timings, {}, {}, bounds=bounds))
    share = find(rows, "cell", "roofline_fraction")
    assert (share["value"], share["unit"]) == (pytest.approx((20 + 10) / 2), "%")
    assert (share["ci_low"], share["ci_high"]) == (pytest.approx(10), pytest.approx(20))
    assert find(rows, "cell", "flops_per_token")["value"] == 500
    assert find(rows, "cell", "bytes_per_token")["value"] == 20
