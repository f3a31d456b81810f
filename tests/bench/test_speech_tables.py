"""What tables and their heads say of speech: real-time factors, subsets, kinds of errors, and where encoders start."""

import io
from dataclasses import replace

from rich.console import Console

from bench.protocol import protocol, signatures
from bench.results import by_task
from bench.tables import build_tables, print_table, render_markdown
from tests.bench.synthetic import NINE, NOISE, Spec, failed, records, rows_of, speech_records

ONE = [Spec("ctc", "ctc", "beam=1", "raw", 90.0, 10.0, 4.0, passes=1.0)]
"""CER 10 %, 10 ms an utterance at batch 1, four times as fast at 32."""


def only(rows, title):
    (row,) = rows_of(render_markdown(rows), title)
    return row


def test_the_overview_of_speech_has_real_time_factors_with_their_scope():
    row = only(speech_records(ONE, references=()), "Quality and speed")
    assert (row["CER (%) ↓"], row["WER (%) ↓"]) == ("10.0 [8.0, 12.5]", "20.0 [16.0, 25.0]")
    found = {name.removeprefix("Real-time factor ↓, "): cell for name, cell in row.items() if "Real-time" in name}
    # 10 ms of 2 s; at batch 32 a quarter of that; 0.08 ms around decoding.
    assert found == {
        "decoding, batch 1": "0.00500 [0.00480, 0.00520]",
        "decoding, batch 32": "0.00125 [0.00120, 0.00130]",
        "end to end, batch 1": "0.00504 [0.00484, 0.00524]",
    }


def test_text_has_no_real_time_factor():
    text = render_markdown(records(ONE, references=()))
    assert "eal-time factor" not in text
    assert "from the end of the audio" not in text


def test_the_time_from_the_end_of_the_audio_to_text_is_named_so():
    row = only(speech_records(ONE, references=()), "Latency, time of each part and passes, at the smallest batch size")
    assert (row["Features (ms)"], row["Decode (ms)"], row["Detokenise (ms)"]) == ("0.0500", "10.0", "0.0300")
    assert row["From the end of the audio to text (ms)"] == "10.1"
    assert row["Decoding p50 (ms)"].startswith("10.0 [")
    assert not {"Tokenise (ms)", "End to end (ms)", "Latency p50 (ms)"} & row.keys()


def test_subsets_have_a_table_with_a_column_for_each():
    cells = [*ONE, Spec("rnn", "rnn", "beam=1", "raw", 96.0)]
    ctc, rnn = rows_of(render_markdown(speech_records(cells, references=())), "CER (%) ↓ by SNR (dB)")
    # Synthetic CER halves with every 5 dB and is that of the whole between 5 and 10.
    assert list(ctc)[4:] == ["-5..0", "0..5", "5..10", "10..15", "15..20"]
    assert list(ctc.values())[4:7] == ["40.0 [32.0, 50.0]", "20.0 [16.0, 25.0]", "10.0 [8.0, 12.5]"]
    assert rnn["-5..0"] == "16.0 [12.8, 20.0]"


def test_where_in_the_reference_errors_are_is_left_to_a_figure():
    assert " by Position" not in render_markdown(speech_records(ONE, references=()))


def test_subsets_come_in_rising_order_whatever_the_order_of_records():
    rows = speech_records(ONE, references=())
    # Twelve to fifteen would come first as text.
    rows = [replace(r, subset="snr_db=-15..-12") if r.subset == NOISE[4] else r for r in rows][::-1]
    assert list(only(rows, "CER (%) ↓ by SNR (dB)"))[4:] == ["-15..-12", "-5..0", "0..5", "5..10", "10..15"]


def test_kinds_of_errors_describe_and_do_not_rank():
    (task,) = by_task(speech_records(ONE, references=()))
    assert (task.headline, task.ranking) == ("cer", ["cer", "wer"])
    row = only(task.records, "What the outputs look like")
    assert [row[f"CER {kind} (%) ↓"].split()[0] for kind in ("substitutions", "deletions", "insertions")] == [
        "5.0", "3.0", "2.0",
    ]  # fmt: skip


def test_values_of_subsets_are_no_values_of_the_whole():
    rows = speech_records(ONE, references=())
    whole = [r for r in rows if not r.subset]
    (with_subsets,), (without,) = by_task(rows), by_task(whole)
    for metric in ("cer", "cer_insertions"):
        assert with_subsets.cells[0].get(metric) == without.cells[0].get(metric)
        assert with_subsets.cells[0].smallest_batch(metric) == without.cells[0].smallest_batch(metric)
    assert with_subsets.quality == without.quality == ["cer", "wer", "cer_substitutions", "cer_deletions",
                                                       "cer_insertions"]  # fmt: skip
    smaller = replace(next(r for r in rows if r.metric == "latency_p50"), subset="snr_db=0..5", value=1.0, batch_size=0)
    (task,) = by_task([*rows, smaller])
    assert task.cells[0].smallest_batch("latency_p50").value == 10, "a smaller batch of a part is no smaller batch"
    # A metric that only subsets have is none of the task's, first though it comes.
    parts = [replace(r, metric="ser") for r in rows if r.subset in NOISE]
    (task,) = by_task([*parts, *rows])
    assert (task.headline, "ser" in task.quality) == ("cer", False)
    assert only([*parts, *rows], "SER (%) ↓ by SNR (dB)")["0..5"] == "20.0 [16.0, 25.0]"
    overview = only(rows, "Quality and speed")
    assert overview == only(whole, "Quality and speed")
    text = "\n".join(protocol(with_subsets))
    assert "Quality over 1000 sentences; each subset by SNR (dB) over 200; throughput over 8 rounds." in text


def test_the_csv_has_subsets_in_columns_of_their_own():
    row = build_tables(speech_records(ONE, references=())).iloc[0]
    assert (row["cer"], row["cer[snr_db=-5..0]"], row["cer[snr_db=-5..0] high"]) == (10, 40, 50)
    assert row["cer_insertions[position=90..100]"] == 2 * 10 / 5.5
    assert row["real_time_factor:end_to_end@1"] > row["real_time_factor:decode@1"]


def test_the_head_says_what_was_timed():
    (task,) = by_task(speech_records(ONE, references=()))
    text = "\n".join(protocol(task))
    for fact in (
        "Timed: from features to final collapsed token ids",
        "Feature extraction and detokenisation are timed apart.",
        "Real-time factor: processing time over the duration of the audio, for decoding alone and, at batch 1, end to "
        "end: feature extraction, decoding and detokenisation.",
        "the latency from the end of the audio to text",
    ):
        assert fact in text
    (task,) = by_task(records(ONE, references=()))
    text = "\n".join(protocol(task))
    assert "Timed: from raw source ids to final collapsed token ids" in text
    assert "Tokenisation and detokenisation are timed apart." in text
    assert "eal-time factor" not in text


def test_speech_that_could_not_be_timed_is_still_speech():
    lost = {"value": None, "ci_low": None, "ci_high": None, "status": "oom", "reason": "no room"}
    rows = [replace(r, **lost) if r.batch_size else r for r in speech_records(ONE, references=())]
    row = only(rows, "Quality and speed")
    assert row["Real-time factor ↓, decoding, batch 1"] == "oom¹"
    assert "Timed: from features" in "\n".join(protocol(by_task(rows)[0]))


def test_the_head_says_which_systems_start_from_an_encoder_that_was_trained_before():
    cells = [*ONE, *(replace(ONE[0], system=name) for name in ("rnn", "imputer", "other"))]
    origin = {"rnn": "init:ctc", "imputer": "init:ctc", "other": "init:big ctc"}
    rows = [
        replace(r, signature=origin.get(r.system, "")) if r.metric == "train_tokens" else r
        for r in speech_records(cells, references=())
    ]
    (task,) = by_task(rows)
    assert (
        "Start from the encoder of a trained system, whose budget is not counted in theirs: "
        "rnn, imputer from ctc; other from big ctc."
    ) in protocol(task)
    for metrics in signatures(task).values():
        assert "train_tokens" not in metrics, "it says nothing of how a metric is computed"
    assert not any("Start from" in line for line in protocol(by_task(speech_records(ONE))[0]))


def test_the_head_says_what_a_search_has_chosen():
    cells = [*ONE, *(replace(ONE[0], system=name) for name in ("rnn", "other"))]
    said = {"rnn": "init:ctc|search:dropout=0.2", "other": "search:"}
    rows = [
        replace(r, signature=said.get(r.system, "")) if r.metric == "train_tokens" else r
        for r in speech_records(cells, references=())
    ]
    (task,) = by_task(rows)
    lines = protocol(task)
    assert any(line.endswith("Chosen: rnn dropout=0.2; other as it was.") for line in lines)
    assert any(line.endswith("not counted in theirs: rnn from ctc.") for line in lines)
    assert not any("searched" in line for line in protocol(by_task(speech_records(ONE))[0]))


def test_accuracy_under_parallelism_is_that_of_what_the_error_rate_leaves():
    row = only(speech_records(ONE, references=()), "Accuracy under parallelism (AUP)")
    assert row["AUP of character accuracy ↑"] == f"{11 * 90:.0f}"  # 11 tokens in one pass
    assert "AUP ↑" in only(records(ONE, references=()), "Accuracy under parallelism (AUP)")


def test_the_terminal_table_of_speech_fits_and_shows_real_time_factors():
    console = Console(width=120, record=True, file=io.StringIO())
    print_table([*speech_records(NINE[:6]), failed(Spec("broken", "ctc", "k=1"), task="morse")], console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    (greedy,) = [line for line in lines if line.lstrip().startswith("transformer [beam=1]")]
    for value in ("2.8 [2.2, 3.5]", "0.00550", "0.000688", "11.0", "1.00", "ok"):
        assert value in greedy
    assert any(line.startswith("RTF: real-time factor of decoding") for line in lines)
