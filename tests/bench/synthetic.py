"""Synthetic records that look like a run's: nine cells, two kinds of family, two AR references, three batch sizes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.records import Record, write_records

RUN = {"suite": "quick", "device": "cpu: test", "dtype": "float32", "threads": 2, "run": "20250101-abc"}
SIGNATURE = "nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"


@dataclass(frozen=True)
class Spec:
    """A cell to make up: quality in %, single-sentence latency in ms, and how much a batch of 32 speeds it up."""

    system: str
    family: str
    settings: str
    data: str = "raw"
    exact: float = 97.0
    ms: float = 10.0
    batching: float = 8.0
    passes: float = 12.0


NINE = (
    Spec("transformer", "transformer", "beam=1", "raw", 97.2, 11.0, 8.0),
    Spec("transformer", "transformer", "beam=5", "raw", 97.6, 19.0, 5.0),
    Spec("deep-shallow", "transformer", "beam=1", "raw", 96.1, 6.4, 9.0),
    Spec("deep-shallow", "transformer", "beam=5", "raw", 96.9, 11.5, 6.0),
    Spec("transformer", "transformer", "beam=1", "distilled", 98.0, 10.8, 8.1),
    Spec("transformer", "transformer", "beam=5", "distilled", 98.1, 18.7, 5.1),
    Spec("ctc", "ctc", "search=greedy", "raw", 14.0, 1.9, 7.0, 1.0),
    Spec("ctc", "ctc", "search=greedy", "distilled", 88.4, 1.9, 7.0, 1.0),
    Spec("ctc", "ctc", "search=prefix_beam beam=8", "distilled", 89.5, 9.6, 1.6, 1.0),
)
REFERENCES = ("transformer [beam=1]", "transformer [beam=5]")


def records(
    cells: Sequence[Spec] = NINE,
    *,
    task: str = "dates",
    batch_sizes: Sequence[int] = (1, 8, 32),
    seeds: Sequence[int] = (1,),
    references: Sequence[str] = REFERENCES,
) -> list[Record]:
    """Make up the records of `cells`; seed s adds s - 1 points of quality, for spreads that can be worked out."""
    made: list[Record] = []
    rng = random.Random(1)
    by_name = {f"{c.system} [{c.settings}]": c for c in cells if c.data == "raw"}
    for seed in seeds:
        trained = set()
        for cell in cells:
            base = dict(RUN, task=task, split="test", system=cell.system, family=cell.family, data=cell.data, seed=seed)

            def add(metric: str, value: float | None, unit: str = "", base: dict[str, Any] = base, **more: Any) -> None:
                made.append(Record(**{**base, "metric": metric, "value": value, "unit": unit, **more}))

            if (cell.system, cell.data) not in trained:
                trained.add((cell.system, cell.data))
                add("parameters", 1_234_567.0, settings="")
                add("train_tokens", 600_000.0, "tokens", settings="")
                add("train_minutes", 1.5, "min", settings="")
                if cell.family == "ctc":
                    add("infeasible_pairs", 0.25, "%", settings="")
            exact = cell.exact + seed - 1
            quality = {"exact_match": exact, "bleu": exact - 2, "mixed_mode_rate": 0.4 * (100 - exact)}
            for metric, value in quality.items():
                low, high = max(0.0, value - 1.4), min(100.0, value + 1.3)
                signature = SIGNATURE if metric == "bleu" else ""
                add(metric, value, "%", ci_low=low, ci_high=high, n=1000, settings=cell.settings, signature=signature)
            _speed(add, cell, batch_sizes, {name: by_name[name] for name in references if name in by_name}, rng)
    return made


def _speed(add: Any, cell: Spec, batch_sizes: Sequence[int], references: dict[str, Spec], rng: random.Random) -> None:
    for size in batch_sizes:
        rate = _rate(cell, size)
        at = {"settings": cell.settings, "batch_size": size}
        add("tokens_per_second", 11 * rate, "tokens/s", ci_low=10.5 * rate, ci_high=11.4 * rate, n=8, **at)
        add("sentences_per_second", rate, "sentences/s", ci_low=0.96 * rate, ci_high=1.04 * rate, n=8, **at)
        for name, other in references.items():
            ratio = rate / _rate(other, size)
            itself = other is cell
            add("speedup", ratio, "x", ci_low=ratio * (1 if itself else 0.94), n=8, reference=name, **at,
                ci_high=ratio * (1 if itself else 1.05))  # fmt: skip
        add("encoder_passes", 1.0, **at)
        add("decoder_passes", cell.passes, **at)
        add("tokens_per_pass", 11 / cell.passes, **at)
        add("iterations", cell.passes, **at)
        add("tied_outputs", 0.0, "sentences", n=160, **at)
        add("foreign_cpu", rng.uniform(0, 4), "%", **at)
    at = {"settings": cell.settings, "batch_size": 1}
    for name, factor in {"p50": 1.0, "p90": 1.3, "p95": 1.45}.items():
        ms = cell.ms * factor
        add(f"latency_{name}", ms, "ms", ci_low=0.97 * ms, ci_high=1.04 * ms, n=160, **at)
    add("latency_p99", None, "ms", n=160, reason="needs 662 sentences, has 160", **at)
    for part, ms in {"tokenise": 0.05, "decode": cell.ms, "detokenise": 0.03, "end_to_end": cell.ms + 0.08}.items():
        add("seconds_per_sentence", ms, "ms", part=part, **at)


def _rate(cell: Spec, size: int) -> float:
    """Sentences per second: 1 at batch 1, `batching` times that at 32, a power law between."""
    return 1000 / cell.ms * float(cell.batching ** (0.2 * (size.bit_length() - 1)))


def failed(spec: Spec, status: str = "failed", reason: str = "loss is NaN at step 120", task: str = "dates") -> Record:
    """Make up the record of a cell that has no values."""
    return Record(
        **RUN, task=task, split="test", system=spec.system, family=spec.family, settings=spec.settings, data=spec.data,
        seed=1, metric="cell", value=None, unit="", status=status, reason=reason,
    )  # fmt: skip


def write_run(folder: Path, rows: Iterable[Record], latencies_of: Sequence[Spec] = (), sentences: int = 160) -> Path:
    """Write a results folder, with raw latencies of `latencies_of` if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "records.csv", rows)
    if latencies_of:
        lines = ["task,system,data,settings,seed,sentence,round,milliseconds,tokens"]
        rng = random.Random(2)
        for cell in latencies_of:
            for sentence in range(sentences):
                tokens = rng.randint(5, 17)
                usual = cell.ms * (tokens / 11 if cell.family == "transformer" else 1)
                lines += [
                    f"dates,{cell.system},{cell.data},{cell.settings},1,{sentence},{r},"
                    f"{usual * rng.uniform(0.95, 1.2):.4f},{tokens}"
                    for r in range(4)
                ]
        (folder / "latencies.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


SECONDS = 2.0
"""Duration of every utterance of the speech records."""
KIND_SHARES = {"substitutions": 0.5, "deletions": 0.3, "insertions": 0.2}
NOISE = ("snr_db=-5..0", "snr_db=0..5", "snr_db=5..10", "snr_db=10..15", "snr_db=15..20")


def speech_records(
    cells: Sequence[Spec] = NINE, *, task: str = "morse", batch_sizes: Sequence[int] = (1, 8, 32), **more: Any
) -> list[Record]:
    """Make up the records of `cells` on speech: CER is what they lack of 100, and halves with every 5 dB."""
    made: list[Record] = []
    for row in records(cells, task=task, batch_sizes=batch_sizes, **more):
        if row.metric == "exact_match":
            made += _error_rates(row)
        elif row.part == "tokenise":
            made.append(replace(row, part="features"))
        elif row.metric not in ("bleu", "mixed_mode_rate"):
            made.append(row)
        if row.metric == "sentences_per_second":
            scopes = {"decode": 0.0, "end_to_end": 0.00008} if row.batch_size == 1 else {"decode": 0.0}
            for part, around in scopes.items():
                factor = (1 / (row.value or 1) + around) / SECONDS
                bounds = {"ci_low": 0.96 * factor, "ci_high": 1.04 * factor}
                made.append(replace(row, metric="real_time_factor", value=factor, unit="", part=part, **bounds))
    return made


def _error_rates(exact: Record) -> list[Record]:
    """CER, twice as much WER, CER by noise, and kinds of errors: insertions grow along the reference."""
    cer = 100 - (exact.value or 0)

    def rate(metric: str, value: float, subset: str = "", signature: str = "tool:jiwer", **more: Any) -> Record:
        bounds = {"ci_low": 0.8 * value, "ci_high": 1.25 * value} if not subset.startswith("position") else {}
        empty: dict[str, Any] = {"ci_low": None, "ci_high": None, "signature": signature}
        return replace(exact, metric=metric, value=value, subset=subset, **{**empty, **bounds, **more})

    rows = [rate("cer", cer), rate("wer", 2 * cer)]
    rows += [rate(f"cer_{kind}", share * cer) for kind, share in KIND_SHARES.items()]
    rows += [rate("cer", cer * 2.0 ** (2 - i), name, n=200) for i, name in enumerate(NOISE)]
    for kind, share in KIND_SHARES.items():
        for tenth in range(10):
            value = share * cer * ((tenth + 1) / 5.5 if kind == "insertions" else 1.0)
            rows.append(rate(f"cer_{kind}", value, f"position={10 * tenth}..{10 * tenth + 10}"))
    return rows


def rows_of(markdown: str, title: str) -> list[dict[str, str]]:
    """Read the table under a heading of a Markdown page: for each row its cells by their headings."""
    section = re.split(r"^### ", markdown, flags=re.MULTILINE)
    (body,) = [part for part in section if part.startswith(f"{title}\n")]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
