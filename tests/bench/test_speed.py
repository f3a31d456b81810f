import csv
import json
from collections import Counter
from itertools import groupby

import pytest

from bench import speed
from bench.preparation import PreparedData
from bench.text import WordTokenizer
from tests.bench.scripted import CALLS, CLOCK, LOG_PROBABILITY, cell, find, prepare, spec
from tests.bench.tiny import silent

SENTENCES = 12


@pytest.fixture(autouse=True)
def _fresh_script():
    CLOCK.now = 0
    CALLS.clear()


@pytest.fixture
def measure(tmp_path):
    """Return a function that measures cells on the scripted clock and gives the rows."""
    syncs = []

    def once(description, name="artifact"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        parents = once.parents or prepare(tmp_path, len(description["cells"]))
        once.parents = parents
        speed.measure(description, folder, parents, silent, CLOCK, lambda: syncs.append(len(CALLS)))
        return json.loads((folder / "measurements.json").read_text())["measurements"]

    once.parents = None
    once.folder = tmp_path / "artifact"
    once.syncs = syncs
    return once


def journal(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def timings(folder):
    return [line for line in journal(folder) if "durations" in line]


def steady(rows):
    """Leave out what depends on the machine even on a scripted clock."""
    return [row for row in rows if row["metric"] != "foreign_cpu"]


def test_rates_and_latencies_are_exact_on_a_scripted_clock(measure):
    rows = measure(spec([cell("a", ms_per_batch=4, ms_per_sentence=2)], sentences=12))
    num_tokens = sum(timings(measure.folder)[0]["tokens"])
    # 12 sentences: 12 batches of 4 + 2 ms at batch 1, 3 batches of 4 + 4 * 2 ms at batch 4.
    for size, seconds in {1: 0.072, 4: 0.036}.items():
        row = find(rows, "a", "tokens_per_second", batch_size=size)
        assert row["value"] == pytest.approx(num_tokens / seconds)
        assert row["ci_low"] == row["ci_high"] == pytest.approx(row["value"])
        assert (row["n"], row["status"]) == (3, "ok")
        assert find(rows, "a", "sentences_per_second", batch_size=size)["value"] == pytest.approx(12 / seconds)
    assert find(rows, "a", "latency_p50")["value"] == pytest.approx(6)
    assert find(rows, "a", "latency_p90")["reason"] == "needs 64 sentences, has 12"
    assert find(rows, "a", "seconds_per_sentence", part="decode")["value"] == pytest.approx(6)


def test_tokens_are_those_of_the_sampled_outputs(measure):
    measure(spec([cell("a", ms_per_batch=1)], sentences=20))  # the whole split
    data = PreparedData(measure.parents["data"])
    everything = sum(len(pair.source) for pair in data.encode(data.examples("test")))
    assert {sum(line["tokens"]) for line in timings(measure.folder)} == {everything}


def test_every_decode_is_enclosed_by_synchronisations(measure):
    measure(spec([cell("a", ms_per_batch=1)]))
    # Each entry is the number of decode calls before that synchronisation: they come in pairs (k, k + 1) around call k.
    # The decoder alone is timed with them, and passes (12 calls) are counted before.
    pairs = list(zip(measure.syncs[::2], measure.syncs[1::2], strict=True))
    assert pairs == [(k, k + 1) for k in range(12, len(CALLS))]


def test_each_round_times_every_point_once_in_its_own_order(measure):
    cells = [cell(name, ms_per_batch=1) for name in "abc"]
    measure(spec(cells, batch_sizes=[1, 2, 4], min_runs=6))
    points = [(line["round"], line["point"]["cell"], line["point"]["batch_size"]) for line in timings(measure.folder)]
    orders = [[p[1:] for p in group] for _, group in groupby(points, key=lambda p: p[0])]
    assert len(orders) == 6
    assert all(sorted(order) == [(c, s) for c in "abc" for s in (1, 2, 4)] for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_warm_up_is_not_timed(measure):
    measure(spec([cell("a", ms_per_batch=1)], batch_sizes=[4]))
    # 12 calls for the passes; 2 warm-ups and 3 rounds of 3 batches each.
    assert Counter(CALLS) == {1: 12, 4: 5 * 3}
    assert len(timings(measure.folder)) == 3


def test_tokenising_and_detokenising_are_timed_apart(measure, monkeypatch):
    encode, decode = WordTokenizer.encode, WordTokenizer.decode

    def slow_encode(self, text):
        CLOCK.now += 1_000_000
        return encode(self, text)

    def slow_decode(self, ids):
        CLOCK.now += 2_000_000
        return decode(self, ids)

    monkeypatch.setattr(WordTokenizer, "encode", slow_encode)
    monkeypatch.setattr(WordTokenizer, "decode", slow_decode)
    rows = measure(spec([cell("a", ms_per_batch=5)]))
    parts = {r["part"]: r["value"] for r in rows if r["metric"] == "seconds_per_sentence"}
    assert parts == pytest.approx({"tokenise": 1, "decode": 5, "detokenise": 2, "end_to_end": 8})
    assert {r["batch_size"] for r in rows if r["metric"] == "seconds_per_sentence"} == {1}


def test_passes_and_iterations_are_means_over_sentences(measure):
    rows = measure(spec([cell("a", ms_per_batch=1)]))
    lengths = next(line["tokens"] for line in timings(measure.folder) if line["point"]["batch_size"] == 1)
    # The scripted decoder makes a pass for each token and one for the end.
    passes = sum(lengths) + SENTENCES
    assert find(rows, "a", "encoder_passes")["value"] == 1
    assert find(rows, "a", "decoder_passes")["value"] == pytest.approx(passes / SENTENCES)
    assert find(rows, "a", "iterations")["value"] == pytest.approx(passes / SENTENCES)
    assert find(rows, "a", "tokens_per_pass")["value"] == pytest.approx(sum(lengths) / passes)


def test_speed_ups_name_their_reference(measure):
    cells = [cell("ref", ms_per_batch=6), cell("fast", ms_per_batch=2)]
    rows = measure(spec(cells, references=["ref"]))
    row = find(rows, "fast", "speedup", batch_size=4)
    assert (row["value"], row["reference"]) == (pytest.approx(3), "label of ref")


def test_a_planted_slower_decoder_is_seen_on_the_real_clock(tmp_path):
    cells = [cell("fast", sleep_ms=5), cell("slow", sleep_ms=15)]
    folder = tmp_path / "artifact"
    folder.mkdir()
    speed.run(spec(cells, ["fast"], batch_sizes=[4], min_runs=8), folder, prepare(tmp_path, 2), silent)
    written = json.loads((folder / "measurements.json").read_text())
    row = find(written["measurements"], "slow", "speedup")
    assert row["ci_high"] < 1
    # It sleeps three times as long; the rest of the work is common and small, but the machine may be busy.
    assert 0.2 < row["value"] < 0.6
    assert written["environment"]["threads"] == 1
    assert written["environment"]["sentences"] == SENTENCES


def test_an_output_that_was_not_scored_fails_its_point_only(measure):
    rows = measure(spec([cell("a", ms_per_batch=1, wrong_above=1), cell("b", ms_per_batch=1)]))
    row = find(rows, "a", "tokens_per_second", batch_size=4)
    # One sentence of each of the three batches.
    assert (row["value"], row["status"]) == (None, "failed")
    assert row["reason"] == "3 of 12 outputs differ from the scored hypotheses"
    assert find(rows, "a", "tokens_per_second", batch_size=1)["status"] == "ok"
    assert find(rows, "b", "tokens_per_second", batch_size=4)["status"] == "ok"


def test_a_tie_is_tolerated_and_counted(measure, tmp_path):
    parents = prepare(tmp_path, 1)
    data = PreparedData(parents["data"])
    longest = max(len(pair.source) for pair in data.encode(data.examples("test")))
    measure.parents = parents
    # In a single batch of all 20 only the longest sentence loses a token, at the score of the whole.
    settings = {"wrong_above": 1, "wrong_score": LOG_PROBABILITY * longest}
    rows = measure(spec([cell("a", ms_per_batch=1, **settings)], sentences=20, batch_sizes=[1, 20]))
    assert find(rows, "a", "tied_outputs", batch_size=20)["value"] == 1
    assert find(rows, "a", "tied_outputs", batch_size=1)["value"] == 0
    assert find(rows, "a", "tokens_per_second", batch_size=20)["status"] == "ok"


def test_out_of_memory_is_a_row_for_that_batch_size_and_larger_ones(measure):
    rows = measure(spec([cell("a", ms_per_batch=1, memory=2), cell("b", ms_per_batch=1)], batch_sizes=[1, 2, 4, 8]))
    found = {r["batch_size"]: r for r in rows if r["cell"] == "a" and r["metric"] == "tokens_per_second"}
    assert [found[size]["status"] for size in (1, 2, 4, 8)] == ["ok", "ok", "oom", "oom"]
    assert found[4]["reason"] == "MemoryError"
    assert found[8]["reason"] == "out of memory at batch 4 already"
    assert 8 in CALLS, "the other cell goes on"
    assert find(rows, "b", "tokens_per_second", batch_size=8)["status"] == "ok"


def test_the_allocator_of_the_cpu_counts_as_out_of_memory(measure):
    error = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    rows = measure(spec([cell("a", error=error)]))
    assert {r["status"] for r in rows} == {"oom"}


def test_an_error_fails_its_cell_and_the_rest_goes_on(measure):
    rows = measure(spec([cell("a", error="boom\nmore"), cell("b", ms_per_batch=1)]))
    assert {(r["status"], r["reason"], r["value"]) for r in rows if r["cell"] == "a"} == {
        ("failed", "RuntimeError: boom", None)
    }
    assert {r["status"] for r in rows if r["cell"] == "b"} == {"ok"}


def test_a_checkpoint_is_loaded_once_for_all_its_cells(measure, monkeypatch):
    loads = []
    load_model = speed.load_model
    monkeypatch.setattr(speed, "load_model", lambda *args: loads.append(args) or load_model(*args))
    measure(spec([cell("a", ms_per_batch=1), cell("b", ms_per_batch=2)]))
    assert len(loads) == 1


def test_what_a_kill_interrupts_is_named_and_goes_on(measure):
    cells = [cell("a", ms_per_batch=1), cell("b", ms_per_batch=2)]
    undisturbed = measure(spec(cells, min_runs=4), "undisturbed")
    total = len(CALLS)
    CALLS.clear()
    # Both cells die at that call: in the last round or shortly before.
    dying = spec([cell(c["id"], **{**c["settings"], "die_at": total - 20}) for c in cells], min_runs=4)
    with pytest.raises(KeyboardInterrupt):
        measure(dying)
    kept = [line for line in timings(measure.folder) if line["round"] < 3]
    assert len(kept) >= 2 * 4
    current = json.loads((measure.folder / "current.json").read_text())
    assert current["cell"] in "ab"
    assert current["batch_size"] in (1, 4)
    with (measure.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "point": {"cel')  # torn
    CALLS.clear()
    resumed = measure(spec(cells, min_runs=4))
    assert steady(resumed) == steady(undisturbed)
    whole = {line["complete"] for line in journal(measure.folder) if "complete" in line}
    assert whole == {0, 1, 2, 3}
    per_round = Counter(line["round"] for line in timings(measure.folder))
    assert per_round == dict.fromkeys(range(4), 4)
    assert len(CALLS) < total, "finished rounds are not done again"
    assert not (measure.folder / "current.json").exists()


def test_what_the_runner_excluded_is_left_out(measure):
    measure.folder.mkdir()
    excluded = [
        {"cell": "a", "batch_size": 4, "status": "timeout", "reason": "took too long"},
        {"cell": "b", "batch_size": None, "status": "failed", "reason": "killed by signal 11"},
    ]
    (measure.folder / "excluded.json").write_text(json.dumps(excluded))
    rows = measure(spec([cell(name, ms_per_batch=1) for name in "abc"]))
    status = {
        (r["cell"], r["batch_size"]): (r["status"], r["reason"]) for r in rows if r["metric"] == "tokens_per_second"
    }
    killed = ("failed", "killed by signal 11")
    assert status == {
        ("a", 1): ("ok", ""), ("a", 4): ("timeout", "took too long"),
        ("b", 1): killed, ("b", 4): killed,
        ("c", 1): ("ok", ""), ("c", 4): ("ok", ""),
    }  # fmt: skip


def test_latencies_hold_every_sentence_of_every_round(measure):
    measure(spec([cell("a", ms_per_sentence=3), cell("b", ms_per_sentence=5, error="boom")]))
    with (measure.folder / "latencies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["round"] for row in rows) == {"0": SENTENCES, "1": SENTENCES, "2": SENTENCES}
    assert {row["cell"] for row in rows} == {"a"}
    assert {float(row["milliseconds"]) for row in rows} == {3.0}
    data = PreparedData(measure.parents["data"])
    lengths = {
        e.id: len(pair.source)
        for e, pair in zip(data.examples("test"), data.encode(data.examples("test")), strict=True)
    }
    assert all(int(row["tokens"]) == lengths[row["sentence"]] for row in rows)


def test_the_roofline_is_counted_where_it_is_asked_for(measure):
    plain = measure(spec([cell("a", ms_per_batch=1)]), "plain")
    assert not [row for row in plain if row["metric"] == "roofline_fraction"]
    rows = measure(spec([cell("a", ms_per_batch=1)], roofline=True), "counted")
    assert [row["batch_size"] for row in rows if row["metric"] == "roofline_fraction"] == [1, 4]
    environment = json.loads((measure.folder.parent / "counted" / "measurements.json").read_text())["environment"]
    assert {"weight_bytes", "flops", "bandwidth"} == set(environment["roofs"][0])


def test_fewer_batches_of_small_sizes(measure):
    """Of 12 sentences, 5 one by one and one batch of 4: what is reported is over those."""
    rows = measure(spec([cell("a", ms_per_batch=2)], max_batches=(5, 1)))
    by_size = {line["point"]["batch_size"]: line for line in timings(measure.folder)}
    assert [len(by_size[size]["durations"]) for size in (1, 4)] == [5, 1]
    for size, sentences in ((1, 5), (4, 4)):
        seconds = sum(by_size[size]["durations"]) / 1e9
        row = find(rows, "a", "sentences_per_second", batch_size=size)
        assert row["value"] == pytest.approx(sentences / seconds)
        assert find(rows, "a", "tied_outputs", batch_size=size)["n"] == sentences
    assert find(rows, "a", "decoder_passes")["n"] == 5
    lines = (measure.folder / "latencies.csv").read_text().splitlines()[1:]
    ids = [line.split(",")[1] for line in lines]
    assert len(set(ids)) == 5
    environment = json.loads((measure.folder / "measurements.json").read_text())["environment"]
    assert environment["max_batches"] == [5, 1]


def test_parts_of_the_time_are_there_where_they_are_asked_for(measure, monkeypatch):
    monkeypatch.setattr(speed, "break_down", lambda *_: {"decoder": 75.0, "other": 25.0})
    rows = measure(spec([cell("a", ms_per_batch=1)], breakdown=True))
    shares = {(r["batch_size"], r["part"]): r["value"] for r in rows if r["metric"] == "time_share"}
    assert shares == {(size, part): v for size in (1, 4) for part, v in (("decoder", 75.0), ("other", 25.0))}
