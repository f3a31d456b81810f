"""Tables say what the records say, no more and no less."""

import csv
import io
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from bench.protocol import protocol
from bench.quality import METRICS
from bench.records import Record
from bench.results import QUALITY, by_task
from bench.sheets import count, significant
from bench.tables import build_tables, escape, print_table, render_markdown, write_tables
from tests.bench.synthetic import NINE, Spec, failed, records, rows_of, write_run

BASE = {"suite": "s", "task": "t", "split": "test", "seed": 1, "device": "cpu: x", "dtype": "float32", "threads": 2}
AR = {**BASE, "system": "ar", "family": "transformer", "data": "raw", "settings": "beam=1", "run": "r1"}
NAT = {**BASE, "system": "nat", "family": "ctc", "data": "distilled", "settings": "", "run": "r1"}


def record(base, metric, value, unit="", **more):
    return Record(**{**base, "metric": metric, "value": value, "unit": unit, **more})


def small():
    """Two cells: an AR reference and a distilled NAT that ran out of memory at batch 8."""
    at8 = {"batch_size": 8, "status": "oom", "reason": "no room"}
    return [
        record(AR, "parameters", 1_500_000.0, settings=""),
        record(AR, "exact_match", 97.25, "%", ci_low=95.84, ci_high=98.5, n=500),
        record(AR, "bleu", 90.0, ci_low=88.0, ci_high=92.0, n=500, signature="nrefs:1|tok:13a"),
        record(AR, "perplexity", 1.234, n=500),
        record(AR, "tokens_per_second", 1234.4, "tokens/s", ci_low=1200.0, ci_high=1300.0, n=8, batch_size=1),
        record(AR, "tokens_per_second", 5000.0, "tokens/s", n=8, batch_size=8),
        record(AR, "latency_p50", 9.876, "ms", ci_low=9.5, ci_high=10.25, n=100, batch_size=1),
        record(AR, "latency_p99", None, "ms", reason="needs 662 sentences, has 100", batch_size=1),
        record(NAT, "parameters", 2_000.0),
        record(NAT, "exact_match", 80.0, "%", ci_low=77.0, ci_high=83.0, n=500),
        record(NAT, "tokens_per_second", 4321.0, "tokens/s", n=8, batch_size=1),
        record(NAT, "tokens_per_second", None, "tokens/s", **at8),
        record(NAT, "speedup", 3.5, "x", ci_low=3.4, ci_high=3.6, n=8, batch_size=1, reference="ar [beam=1]"),
        record(NAT, "speedup", None, "x", reference="ar [beam=1]", **at8),
        record(NAT, "foreign_cpu", 12.5, "%", batch_size=1),
    ]


def test_the_overview_has_a_row_per_cell_with_intervals_and_statuses():
    ar, nat = rows_of(render_markdown(small()), "Quality and speed")
    assert ar == {
        "System": "ar",
        "Family": "transformer",
        "Trained on": "raw",
        "Settings": "beam=1",
        "Status": "ok",
        "Exact match (%) ↑": "97.2 [95.8, 98.5]",
        "BLEU ↑": "90.0 [88.0, 92.0]",
        "Tokens/s, batch 1": "1234 [1200, 1300]",
        "Tokens/s, batch 8": "5000",
        "Speed-up over ar [beam=1], batch 1": "1.00",
        "Speed-up over ar [beam=1], batch 8": "1.00",
    }
    assert nat["Trained on"] == "distilled"
    assert nat["Settings"] == "default"
    assert nat["Status"] == "oom at batch 8¹"
    assert nat["BLEU ↑"] == "–"
    assert nat["Tokens/s, batch 8"] == "oom¹"
    assert nat["Speed-up over ar [beam=1], batch 1"] == "3.50 [3.40, 3.60]"


def test_the_other_tables_have_latency_diagnostics_and_models():
    markdown = render_markdown(small())
    ar, nat = rows_of(markdown, "Latency, time of each part and passes, at the smallest batch size")
    assert ar["Latency p50 (ms)"] == "9.88 [9.50, 10.2]"
    assert ar["Latency p99 (ms)"] == "–²"
    assert nat["Latency p50 (ms)"] == "–"
    assert "Tokenise (ms)" not in ar, "a column without a value is left out"
    assert "¹ no room" in markdown
    assert "² needs 662 sentences, has 100" in markdown
    assert rows_of(markdown, "What the outputs look like")[0]["Perplexity ↓"] == "1.23"
    assert [row["Parameters"] for row in rows_of(markdown, "Models and their training")] == ["1.50 M", "2.00 k"]


def test_the_header_states_the_facts():
    text = "\n".join(protocol(by_task(small())[0]))
    for fact in (
        "Split test; device cpu: x; dtype float32; CPU threads while timing 2; training seed 1; run r1.",
        "Quality over 500 sentences; throughput over 8 rounds.",
        "Speed-up over ar [beam=1]: median of paired ratios",
        "(distilled): nat. No AR system is,",
        "up to 12.5 % of a CPU core while timing. Times are doubtful.",
        "1 of 2 cells failed",
    ):
        assert fact in text
    assert "- BLEU: `nrefs:1|tok:13a`" in render_markdown(small())


def test_metrics_that_are_computed_alike_share_a_line():
    records = [
        record(AR, "cer", 2.0, "%", n=500, signature="tool:jiwer"),
        record(AR, "bleu", 90.0, n=500, signature="tok:13a"),
        record(AR, "wer", 4.0, "%", n=500, signature="tool:jiwer"),
        record(NAT, "cer", 2.0, "%", n=500, signature="tool:jiwer"),
    ]
    lines = [line for line in render_markdown(records).splitlines() if "`" in line]
    assert lines == ["- CER, WER: `tool:jiwer`", "- BLEU: `tok:13a`"]


def test_unequal_budgets_are_said():
    rows = [record(AR, "train_tokens", 1000.0, settings=""), record(NAT, "train_tokens", 1010.0)]
    assert "budgets" not in "\n".join(protocol(by_task(rows)[0]))
    rows.append(record({**NAT, "data": "raw"}, "train_tokens", 2000.0))
    assert "Training budgets differ: 1000 to 2000 target tokens" in "\n".join(protocol(by_task(rows)[0]))


def test_an_ar_system_on_distilled_data_lifts_the_warning():
    rows = [*small(), record({**AR, "data": "distilled"}, "exact_match", 98.0, "%")]
    assert "No AR system" not in "\n".join(protocol(by_task(rows)[0]))


def test_every_reference_is_named_at_the_smallest_and_the_largest_batch():
    ctc = rows_of(render_markdown(records()), "Speed-up over each AR reference")[6]
    # 11 ms against 1.9 ms a sentence at batch 1; at batch 32 the one is batched 8 times as fast, the other 7 times.
    assert ctc["Over transformer [beam=1], batch 1"].startswith(f"{11 / 1.9:.2f} [")
    assert ctc["Over transformer [beam=1], batch 32"].startswith(f"{11 / 1.9 * 7 / 8:.2f} [")
    assert ctc["Over transformer [beam=5], batch 1"].startswith(f"{19 / 1.9:.2f} [")
    assert not any("batch 8" in name for name in ctc)


def test_seeds_are_averaged_with_their_spread_and_never_with_an_interval():
    rows = records([Spec("a", "ctc", "k=1", exact=90.0)], seeds=(1, 2, 3))
    markdown = render_markdown(rows)
    (row,) = rows_of(markdown, "Quality and speed")
    # Synthetic seeds 1, 2, 3 have 90, 91, 92.
    assert row["Seeds"] == "1, 2, 3"
    assert row["Exact match (%) ↑"] == "91.0 (90.0–92.0)"
    by_seed = rows_of(markdown, "Quality by training seed")
    assert [r["Exact match (%) ↑"] for r in by_seed] == [
        "90.0 [88.6, 91.3]", "91.0 [89.6, 92.3]", "92.0 [90.6, 93.3]",
    ]  # fmt: skip
    frame = build_tables(rows).iloc[0]
    assert (frame["exact_match"], frame["exact_match min"], frame["exact_match max"]) == (91.0, 90.0, 92.0)
    assert "exact_match low" not in frame


def test_a_seed_that_failed_is_named():
    rows = [r for r in records([Spec("a", "ctc", "k=1")], seeds=(1, 2)) if r.seed == 1]
    rows.append(replace(failed(Spec("a", "ctc", "k=1")), seed=2))
    (row,) = rows_of(render_markdown(rows), "Quality and speed")
    assert row["Status"] == "failed seed 2¹"
    assert row["Exact match (%) ↑"] == "97.0 [95.6, 98.3]"


def test_a_model_that_failed_before_decoding_has_a_row():
    rows = [*small(), record({**NAT, "data": "raw"}, "train_minutes", None, status="timeout", reason="too slow")]
    assert [row["Status"][:7] for row in rows_of(render_markdown(rows), "Quality and speed")][2] == "timeout"


def test_two_values_for_one_thing_are_refused():
    with pytest.raises(ValueError, match="two records of exact_match for ar"):
        render_markdown([*small(), small()[1]])


def test_the_csv_has_numbers_in_columns_of_their_own(tmp_path):
    write_run(tmp_path, small())
    assert {path.name for path in write_tables(tmp_path)} == {"table.md", "table.csv"}
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        ar, nat = csv.DictReader(file)
    assert (ar["exact_match"], ar["exact_match low"], ar["exact_match high"]) == ("97.25", "95.84", "98.5")
    assert (ar["tokens_per_second@8"], nat["tokens_per_second@8"]) == ("5000.0", "")
    assert (nat["speedup@1 vs ar [beam=1]"], nat["status"], nat["reason"]) == ("3.5", "oom at batch 8", "no room")
    assert ar["parameters"] == "1500000.0"


def test_damaged_records_leave_no_table(tmp_path):
    write_run(tmp_path, small())
    text = (tmp_path / "records.csv").read_text()
    (tmp_path / "records.csv").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"records\.csv"):
        write_tables(tmp_path)
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("mask_predict _x_", r"mask_predict \_x\_"),
        ("<b>&amp;</b>", r"\<b\>\&amp;\</b\>"),
        ("two\nlines", "two lines"),
        ("[beam=1]", "[beam=1]"),
        ("[x](y) $z$ `c` *", r"[x\](y) \$z\$ \`c\` \*"),
    ],
)
def test_names_are_shown_literally(text, shown):
    assert escape(text) == shown


def test_a_hostile_name_breaks_no_row():
    rows = [replace(r, system="a | b\n<x> `$y$`") for r in small()[:7]]
    (row,) = rows_of(render_markdown(rows), "Quality and speed")
    assert row["System"] == r"a \| b \<x\> \`\$y\$\`"


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.01234, "0.0123"), (9.996, "10.00"), (12.34, "12.3"), (98765.4, "98765")]
)
def test_three_significant_digits(value, shown):
    assert significant(value) == shown


def test_counts_are_short():
    assert [count(n) for n in (999, 600_000, 1_234_567, 2.5e9)] == ["999", "600 k", "1.23 M", "2.50 G"]


def test_the_terminal_table_fits_and_holds_what_matters():
    console = Console(width=120, record=True, file=io.StringIO())
    print_table([*records(), failed(Spec("broken", "ctc", "k=1"))], console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 120
    (greedy,) = [line for line in lines if line.lstrip().startswith("transformer [beam=1]")]
    for value in ("97.2 [95.8, 98.5]", "1000", "8000", "11.0", "1.00", "ok"):
        assert value in greedy
    assert "failed¹" in "".join(lines)
    assert "¹ loss is NaN at step 120" in lines
    assert "Speed-up: over transformer [beam=1]." in lines


def test_no_records_make_an_empty_page():
    assert "There are no records." in render_markdown([])
    assert build_tables([]).empty


def test_metrics_are_called_as_quality_calls_them():
    assert set(QUALITY) == set(METRICS)
    for name, metric in QUALITY.items():
        info = METRICS[name]
        assert metric.title == info.title
        assert metric.unit == info.unit.replace("ratio", "")
        assert metric.lower_is_better == (None if info.higher_is_better is None else not info.higher_is_better)


def test_presenting_needs_no_torch():
    code = "import sys, bench.tables, bench.figures; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_nine_cells_all_have_a_row():
    assert [r["System"] for r in rows_of(render_markdown(records()), "Quality and speed")] == [s.system for s in NINE]


def test_equal_minutes_are_equal_budgets():
    rows = [
        record(spec, metric, value, settings="")
        for spec, tokens, minutes in ((AR, 1000.0, 20.0), (NAT, 2000.0, 20.1))
        for metric, value in (("train_tokens", tokens), ("train_minutes", minutes))
    ]
    text = "\n".join(protocol(by_task(rows)[0]))
    assert "Every model was trained for 20 minutes, in which they saw 1000 to 2000 target tokens" in text
    assert "differ" not in text


def test_tables_have_the_cost_of_each_batch_size():
    records = [
        record(AR, "flops_per_token", 1.5e9, batch_size=1),
        record(AR, "bytes_per_token", 2.5e8, "B", batch_size=1),
        record(AR, "roofline_fraction", 61.5, "%", ci_low=60.0, ci_high=63.0, batch_size=1),
        record(AR, "tokens_per_second", 100.0, "tokens/s", batch_size=1),
    ]
    page = render_markdown(records)
    assert "FLOPs/token, batch 1 | Bytes moved/token, batch 1 | Share of the roofline (%), batch 1" in page
    assert "1.50 G | 250 M | 61.5 [60.0, 63.0]" in page


def test_a_table_of_names_alone_is_left_out():
    page = render_markdown([record(AR, "tokens_per_second", 100.0, "tokens/s", batch_size=1)])
    assert "Cost and roofline" not in page
    assert "Models and their training" not in page


def test_tables_say_that_lengths_were_fixed_and_for_whom_not():
    fixed = [
        record(AR, "length_ratio", 1.0, signature="tok:words|length:source"),
        record(AR, "tied_outputs", 2.0, "sentences", batch_size=8),
        record(AR, "train_tokens", 0.0, "tokens", settings=""),
    ]
    text = "\n".join(protocol(by_task(fixed)[0]))
    assert "Outputs are as long as their sources" in text
    assert "Not so" not in text
    assert "Models with 0 target tokens are not trained" in text
    assert "Up to 2 timed outputs of a cell differ from the scored ones; with fixed lengths they take the same" in text
    text = "\n".join(protocol(by_task([*fixed, record(NAT, "length_ratio", 0.7, signature="tok:words")])[0]))
    assert f"Not so: {NAT['system']}" in text
    plain = [record(AR, "length_ratio", 1.0, signature="tok:words"), record(AR, "train_tokens", 9.0, settings="")]
    text = "\n".join(protocol(by_task(plain)[0]))
    assert "as long as" not in text
    assert "not trained" not in text
