"""What a reader must know of how a task was measured, taken from its records: one sentence a line."""

from __future__ import annotations

from collections.abc import Iterable

from bench.names import FIXED_LENGTH
from bench.records import Record
from bench.results import SPEED, TaskResults
from bench.subsets import POSITION, tag_title

BUDGET_TOLERANCE = 0.02
"""Training budgets that differ by less count as equal: the last batch may overshoot."""
INIT, SEARCH = "init:", "search:"
"""What the signature of a training says, parts apart by `|`: from whose encoder it started, and which values a search
for hyper-parameters has chosen."""
BUSY = 10.0
"""Share of a CPU core, in %, above which other processes make times doubtful."""


def protocol(task: TaskResults) -> list[str]:
    """Return how `task` was measured, what intervals mean, and what to beware of."""
    speed = [r for r in task.records if r.metric in SPEED]
    lines = [conditions(task), _sizes(task, speed)]
    if speed:
        source, before = ("features", "Feature extraction") if task.is_speech else ("raw source ids", "Tokenisation")
        lines += [
            f"Timed: from {source} to final collapsed token ids, in rounds that interleave all systems in random "
            f"order on the same sentences. {before} and detokenisation are timed apart. Speed belongs to the "
            "outputs that were scored: a cell has failed if timed ones differ, unless their scores are the same and "
            "they are at most 2 % of the sample, or one.",
            "Tokens are emitted target tokens: no padding, bos, eos, blank, mask or placeholder.",
        ]
    if task.is_speech:
        lines.append(
            "Real-time factor: processing time over the duration of the audio, for decoding alone and, at batch 1, end "
            "to end: feature extraction, decoding and detokenisation. The same end to end, per utterance, is the "
            "latency from the end of the audio to text."
        )
    lines.append(
        "[low, high] is a 95 % bootstrap interval, over sentences for quality and over rounds for throughput and "
        "speed-up; it does not cover training seeds. Over several seeds a value is the mean, (min–max) the spread."
    )
    if task.references:
        lines.append(
            f"Speed-up over {_and(task.references)}: median of paired ratios, same batch size and same rounds."
        )
    lines += warnings(task)
    return [line for line in lines if line]


def conditions(task: TaskResults) -> str:
    """Return on what `task` was measured; threads are those of the timing if there was one."""
    records = task.records
    speed = [r for r in records if r.metric in SPEED]
    measured = speed or records
    threads = sorted({r.threads for r in measured if r.threads is not None})
    seeds = sorted({r.seed for r in records if r.seed is not None})
    facts = {
        "split": _and(r.split for r in records),
        "device": _and(r.device for r in measured),
        "dtype": _and(r.dtype for r in measured),
        "CPU threads" + (" while timing" if speed else ""): _and(map(str, threads)),
        "training seeds" if len(seeds) > 1 else "training seed": _and(map(str, seeds)),
        "run": _and(r.run for r in records),
    }
    return _sentence(f"{name} {value}" for name, value in facts.items() if value)


def _sizes(task: TaskResults, speed: list[Record]) -> str:
    # Perplexity leaves out references with unknown words.
    quality = [r for r in task.records if r.metric in task.quality and r.metric != "perplexity"]
    sentences = sorted({r.n for r in quality if r.n and not r.subset})
    rounds = sorted({r.n for r in speed if r.metric == "tokens_per_second" and r.n})
    facts = [f"quality over {_range(sentences)} sentences"] if sentences else []
    for tag in dict.fromkeys(tag for _, tag in task.subsets if tag != POSITION):
        parts = sorted({r.n for r in task.records if r.n and r.subset.startswith(f"{tag}=")})
        facts += [f"each subset by {tag_title(tag)} over {_range(parts)}"] if parts else []
    facts += [f"throughput over {_range(rounds)} rounds"] if rounds else []
    return _sentence(facts)


def signatures(task: TaskResults) -> dict[str, list[str]]:
    """Return how the quality of `task` was computed over the whole test set: signatures, each with its metrics."""
    found: dict[str, list[str]] = {}
    for record in task.records:
        if record.metric in task.quality and not record.subset and record.signature:
            metrics = found.setdefault(record.signature, [])
            if record.metric not in metrics:
                metrics.append(record.metric)
    return found


def _sentence(facts: Iterable[str]) -> str:
    text = "; ".join(facts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def warnings(task: TaskResults) -> list[str]:
    """Return what to beware of: unlike training data, budgets and starts, failed cells, a busy machine."""
    speed = [r for r in task.records if r.metric in SPEED]
    lines = []
    distilled = list(dict.fromkeys(c.system for c in task.cells if c.data == "distilled"))
    if distilled:
        line = f"Trained on an AR teacher's outputs (distilled): {_and(distilled)}."
        autoregressive = {c.family for c in task.cells if any(task.referred(r) is c for r in task.references)}
        if autoregressive and not any(c.data == "distilled" and c.family in autoregressive for c in task.cells):
            line += " No AR system is, so that distilled rows compare with it only with care."
        lines.append(line)
    lines += _budgets(task)
    started, searched = _origins(task, INIT), _origins(task, SEARCH)
    if searched:
        found = "; ".join(f"{_and(systems)} {values or 'as it was'}" for values, systems in searched.items())
        lines.append(
            "Hyper-parameters are searched on the development set, with as many trials of the same length for every "
            f"model, which its budget leaves out. Chosen: {found}."
        )
    if started:
        origins = "; ".join(f"{_and(systems)} from {origin}" for origin, systems in started.items())
        lines.append(f"Start from the encoder of a trained system, whose budget is not counted in theirs: {origins}.")
    lines += _fixed_lengths(task)
    if any(r.metric == "roofline_fraction" and r.value is not None for r in speed):
        lines.append(
            "Share of the roofline: the least time for the floating-point operations and bytes of matrix products, "
            "attention and convolutions, at the device's measured rates, over the measured time; counted like FLOPs "
            "and bytes over up to four batches of each size."
        )
    foreign = [r.value for r in speed if r.metric == "foreign_cpu" and r.value is not None]
    if foreign:
        line = f"Other processes used up to {max(foreign):.1f} % of a CPU core while timing."
        lines.append(line + (" Times are doubtful." if max(foreign) > BUSY else ""))
    tied = [r.value for r in speed if r.metric == "tied_outputs" and r.value]
    if tied:
        of_fixed_length = any(r.signature.endswith(FIXED_LENGTH) for r in task.records)
        how = "; with fixed lengths they take the same work" if of_fixed_length else " at an equal score"
        lines.append(f"Up to {max(tied):.0f} timed outputs of a cell differ from the scored ones{how}.")
    failed = sum(bool(cell.problems) for cell in task.cells)
    if failed:
        lines.append(f"{failed} of {len(task.cells)} cells failed in whole or in part.")
    return lines


def _origins(task: TaskResults, what: str) -> dict[str, list[str]]:
    """Return what signatures of trainings say after `what`, each with the systems of which it is said."""
    said: dict[str, list[str]] = {}
    for record in task.records:
        if record.metric == "train_tokens":
            name = record.system if record.data == "raw" else f"{record.system} ({record.data})"
            for part in record.signature.split("|"):
                if part.startswith(what):
                    said.setdefault(part.removeprefix(what), []).append(record.system if what == INIT else name)
    return said


def _fixed_lengths(task: TaskResults) -> list[str]:
    """Return what to know of outputs of fixed length and of models that were not trained."""
    fixed = {
        id(cell)
        for cell in task.cells
        if any(r.metric == "length_ratio" and r.signature.endswith(FIXED_LENGTH) for r in cell.records)
    }
    lines = []
    if fixed:
        free = [cell.name for cell in task.cells if id(cell) not in fixed and not cell.problems]
        lines.append(
            "Outputs are as long as their sources, whatever the models say of ends and lengths, and decoders that stop "
            "early make all their rounds. Insertions build a balanced tree, candidates are of one length, and every "
            "round of the Levenshtein Transformer rewrites every second token."
            + (f" Not so: {_and(free)}." if free else "")
        )
    if any(r.metric == "train_tokens" and r.value == 0 for r in task.records):
        lines.append(
            "Models with 0 target tokens are not trained: quality means nothing, and times only where lengths are "
            "fixed."
        )
    return lines


def _budgets(task: TaskResults) -> list[str]:
    """Return what to know of the budgets: nothing if all models had as many target tokens, or else whether as long."""
    tokens, minutes = (
        sorted(r.value for r in task.records if r.metric == metric and r.value)
        for metric in ("train_tokens", "train_minutes")
    )
    if not tokens or tokens[-1] <= tokens[0] * (1 + BUDGET_TOLERANCE):
        return []
    spent = f"{tokens[0]:.0f} to {tokens[-1]:.0f} target tokens (see the models below)"
    if minutes and minutes[-1] <= minutes[0] * (1 + BUDGET_TOLERANCE):
        return [f"Every model was trained for {minutes[0]:.3g} minutes, in which they saw {spent}."]
    return [f"Training budgets differ: {spent}."]


def _and(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(v for v in values if v))


def _range(values: list[int]) -> str:
    return str(values[0]) if values[0] == values[-1] else f"{values[0]}–{values[-1]}"
