"""Brings the artifacts of a suite together into its results folder: records, hypotheses, raw latencies, environment.

Files are replaced one by one and atomically, the records last before tables, figures and the report are made from them;
what a former run left there stands until then.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import bench
from bench.cell_steps import CellSteps
from bench.graph import Graph
from bench.jobs import Outcome
from bench.machine import environment
from bench.names import SENTENCES, cell_id, escape, read_json_lines, slug
from bench.records import Record, read_records, write_records
from bench.steps import Step, write_json
from bench.store import Store, key_of, write_atomically

StepId = tuple[str, str]

METRIC_LIBRARIES = ("jiwer", "rapidfuzz", "sacrebleu")
CELL_COLUMNS = ("task", "system", "data", "settings", "seed")
"""What tells cells apart in latencies.csv."""
CURVE_COLUMNS = ("task", "system", "data", "seed", "metric", "step", "tokens", "seconds", "loss", "score")


class Collector:
    """Reads what the steps of a suite gave."""

    def __init__(
        self, graph: Graph, outcomes: Mapping[StepId, Outcome], measures: Mapping[str, Step], store: Store
    ) -> None:
        """Take the suite's graph, what became of its steps, and the timed step of each task by the task's name."""
        self.graph = graph
        self.outcomes = outcomes
        self.measures = measures
        self.store = store
        speed = graph.suite.measure.speed
        conditions = graph.conditions
        self.threads = (speed.threads if speed is not None else None) or conditions.cores
        self.environment = environment(conditions.device, conditions.dtype, self.threads)
        done = sorted(identity for identity, outcome in outcomes.items() if outcome.status == "ok")
        self.run = key_of(done)[:12]

    def records(self) -> list[Record]:
        """Return all records, in the order of the suite's cells; a failed cell has one, of the metric `cell`."""
        records: list[Record] = []
        models: set[StepId] = set()
        for cell in self.graph.cells:
            failure = self._failure(cell)
            if self._is_done(cell.model) and cell.model.id not in models:
                models.add(cell.model.id)
                rows = self._read(cell.model, "training.json")["records"]
                records += [self._record(cell, row, settings="", threads=cell.model.threads) for row in rows]
            if self._is_done(cell.evaluation):
                rows = self._read(cell.evaluation, "scores.json")
                records += [self._record(cell, row, threads=cell.evaluation.threads) for row in rows]
                records += [self._record(cell, row, threads=self.threads) for row in self._measured(cell)]
            if failure is not None:
                row = {"metric": "cell", "value": None, "unit": "", "status": failure.status, "reason": failure.reason}
                records.append(self._record(cell, row, threads=cell.model.threads))
        return records

    def hypotheses(self) -> Iterator[tuple[Path, str]]:
        r"""Yield a relative path and the detokenised outputs of each cell, one a line, line breaks written as `\n`."""
        for cell in self.graph.cells:
            if not self._is_done(cell.evaluation):
                continue
            text = (self.store.path(*cell.evaluation.id) / "hypotheses.jsonl").read_text(encoding="utf-8")
            lines = [escape(row["hypothesis"]) for row in read_json_lines(text)]
            yield Path(slug(cell.cell.model.task.name)) / f"{cell.id}.txt", "".join(f"{line}\n" for line in lines)

    def sentences(self) -> Iterator[tuple[Path, str]]:
        """Yield a relative path and what the outputs of a task's cells answer, line by line: id, source, references."""
        evaluated: dict[str, CellSteps] = {}
        for cell in self.graph.cells:
            if self._is_done(cell.evaluation):
                evaluated.setdefault(cell.cell.model.task.name, cell)
        split = self.graph.suite.measure.quality.split
        for task, cell in evaluated.items():
            outputs = (self.store.path(*cell.evaluation.id) / "hypotheses.jsonl").read_text(encoding="utf-8")
            examples = (self.store.path(*cell.data.id) / f"{split}.jsonl").read_text(encoding="utf-8")
            by_id = {row["id"]: row for row in read_json_lines(examples)}
            rows = (by_id[row["id"]] for row in read_json_lines(outputs))
            lines = [{key: row[key] for key in ("id", "source", "references")} for row in rows]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            yield Path(slug(task)) / SENTENCES, text

    def latencies(self) -> str | None:
        """Return the raw times of all tasks as CSV, each with the cell it belongs to; None if there are none."""
        output = io.StringIO()
        writer: csv.DictWriter[str] | None = None
        for task, step in self._timed().items():
            cells = {c.id: c for c in self.graph.cells if c.cell.model.task.name == task}
            with (self.store.path(*step.id) / "latencies.csv").open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                if writer is None:
                    own = [name for name in reader.fieldnames or () if name not in ("cell", *CELL_COLUMNS)]
                    writer = csv.DictWriter(output, [*CELL_COLUMNS, *own], lineterminator="\n", extrasaction="ignore")
                    writer.writeheader()
                for row in reader:
                    writer.writerow({**row, **_columns(cells[row["cell"]])})
        return None if writer is None else output.getvalue()

    def curves(self) -> str:
        """Return the learning curves of all models as CSV: what each evaluation on the development set gave."""
        output = io.StringIO()
        writer = csv.DictWriter(output, CURVE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        models: dict[StepId, CellSteps] = {}
        for cell in self.graph.cells:
            if self._is_done(cell.model):
                models.setdefault(cell.model.id, cell)  # the first of several systems with one model, as in the records
        for cell in models.values():
            report = self._read(cell.model, "training.json")
            which = {name: value for name, value in _columns(cell).items() if name != "settings"}
            for point in report["curve"]:
                row = {**which, "metric": report["selection"]["metric"], **point}
                writer.writerow({name: row[name] for name in CURVE_COLUMNS})
        return output.getvalue()

    def describe(self, command: Sequence[str]) -> dict[str, Any]:
        """Return the content of environment.json."""
        return {
            "run": self.run,
            "command": list(command),
            "version": version_of("natbench"),
            "git": git_state(),
            "machine": self.environment,
            "measurements": {
                task: self._read(step, "measurements.json")["environment"] for task, step in self._timed().items()
            },
            "data": self._data(),
            "metric_libraries": {name: version_of(name) for name in METRIC_LIBRARIES},
            "suite": json.loads(json.dumps(self.graph.suite, default=_to_json)),
            "artifacts": sorted("/".join(i) for i, outcome in self.outcomes.items() if outcome.status == "ok"),
        }

    def _data(self) -> dict[str, Any]:
        """Return what is said of the prepared data of each task, without lists of single examples."""
        described = {}
        for task, step in {c.cell.model.task.name: c.data for c in self.graph.cells}.items():
            if self._is_done(step) and (self.store.path(*step.id) / "data.json").exists():
                counts = self._read(step, "data.json")
                splits = {
                    name: {key: value for key, value in split.items() if not isinstance(value, list)}
                    for name, split in counts.get("splits", {}).items()
                }
                described[task] = {**counts, "splits": splits}
        return described

    def _is_done(self, step: Step) -> bool:
        return self.outcomes[step.id].status == "ok"

    def _timed(self) -> dict[str, Step]:
        return {task: step for task, step in self.measures.items() if self._is_done(step)}

    def _failure(self, cell: CellSteps) -> Outcome | None:
        """Return what kept the cell from being measured wholly: the first step of it that failed."""
        measure = self.measures.get(cell.cell.model.task.name)
        for step in (cell.data, cell.model, cell.evaluation, *([measure] if measure is not None else [])):
            outcome = self.outcomes[step.id]
            if outcome.status == "skipped":
                return outcome  # its reason names the step that failed
            if outcome.status != "ok":
                return Outcome(outcome.status, f"{step.kind}: {outcome.reason}", outcome.log)
        return None

    def _read(self, step: Step, name: str) -> Any:
        return json.loads((self.store.path(*step.id) / name).read_text(encoding="utf-8"))

    def _measured(self, cell: CellSteps) -> list[dict[str, Any]]:
        step = self.measures.get(cell.cell.model.task.name)
        if step is None or not self._is_done(step):
            return []
        rows = self._read(step, "measurements.json")["measurements"]
        return [{name: v for name, v in row.items() if name != "cell"} for row in rows if row["cell"] == cell.id]

    def _record(self, cell: CellSteps, row: dict[str, Any], *, threads: int, settings: str | None = None) -> Record:
        model, conditions = cell.cell.model, self.graph.conditions
        row = {name: value for name, value in row.items() if value is not None or name == "value"}
        return Record(
            suite=self.graph.suite.name,
            task=model.task.name,
            split=self.graph.suite.measure.quality.split,
            system=model.system,
            family=model.family,
            settings=cell.cell.settings_label if settings is None else settings,
            data=model.data,
            seed=model.seed,
            device=f"{conditions.device}: {self.environment['device_name']}",
            dtype=conditions.dtype,
            threads=threads,
            run=self.run,
            **row,
        )


def write_results(collector: Collector, folder: Path, command: Sequence[str]) -> list[Record]:
    """Write the results folder, tables, figures and report included, and return its records."""
    from bench.figures import write_figures
    from bench.report import write_report
    from bench.tables import write_tables

    records = collector.records()
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "hypotheses"
    stale = former_hypotheses(folder)
    for path, text in (*collector.sentences(), *collector.hypotheses()):
        (texts / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(texts / path, text)
        stale.discard(texts / path)
    for file in stale:
        file.unlink(missing_ok=True)
    for parent in {file.parent for file in stale}:
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
    latencies = collector.latencies()
    if latencies is None:
        (folder / "latencies.csv").unlink(missing_ok=True)
    else:
        write_atomically(folder / "latencies.csv", latencies)
    write_atomically(folder / "curves.csv", collector.curves())
    write_json(folder / "environment.json", collector.describe(command))
    write_records(folder / "records.csv", records)
    write_tables(folder)
    write_figures(folder)
    try:
        write_report(folder, redraw=False)
    except Exception:  # the results are there, and a page about them must not make the run fail
        traceback.print_exc()
    return records


def former_hypotheses(folder: Path) -> set[Path]:
    """Return the files of hypotheses that belong to the records in `folder`; others there are not ours to remove."""
    try:
        records = read_records(folder / "records.csv")
    except (OSError, ValueError):
        return set()
    texts = folder / "hypotheses"
    files = {texts / slug(r.task) / f"{cell_id(r.system, r.data, r.seed, r.settings)}.txt" for r in records}
    return files | {texts / slug(r.task) / SENTENCES for r in records}


def version_of(distribution: str) -> str | None:
    """Return the installed version of a library; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def git_state(folder: Path = Path(bench.__file__).parent) -> dict[str, Any] | None:
    """Return the commit of the checkout that holds the code and whether it has changes, results apart; or None."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # installed inside somebody else's checkout is not from it
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--", ":/", ":(exclude,top)results")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def _columns(cell: CellSteps) -> dict[str, Any]:
    model = cell.cell.model
    values = (model.task.name, model.system, model.data, cell.cell.settings_label, model.seed)
    return dict(zip(CELL_COLUMNS, values, strict=True))


def _to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, frozenset):
        return sorted(value)
    assert is_dataclass(value)
    assert not isinstance(value, type)
    return asdict(value)
