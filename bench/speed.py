"""The measure step: times the decoders of a task's cells against each other.

All systems decode the same sample of sentences in the same batches, in interleaved rounds (see `bench.timing`). A
timing runs from padded source ids on the host to final collapsed token ids on the host; its outputs must be the scored
ones (see `bench.workload`). What a kill interrupts goes on from the journal (see `bench.journal`).
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.breakdown import break_down
from bench.checkpoint import inference, load_companions, load_model
from bench.configs import SpeedConfig
from bench.errors import reason_of
from bench.journal import Failure, Journal
from bench.language_model import give_language_model
from bench.passes import Observation, observe
from bench.preparation import PreparedData
from bench.roofline import Bound, Roof, bound_of, measure_roof
from bench.speed_rows import Measured, Sample, measurements
from bench.steps import CURRENT, EXCLUDED, Progress, StepFailure, role_key, write_json
from bench.store import write_atomically
from bench.timing import Clock, Point, Timing, due, round_order, share_done, time_each, warm_up
from bench.workload import SourceBatch, System, draw_sample, make_workload, read_hypotheses, spread
from models.interface import Model
from models.registry import load_family

WARM_UP_BATCHES = 8
COUNTED_BATCHES = 4
"""Batches of a point whose cost is counted, short and long ones."""
JOURNAL = "rounds.jsonl"


def run(spec: dict[str, Any], folder: Path, parents: dict[str, Path], progress: Progress) -> None:
    """Measure the cells of `spec`; write `measurements.json`, `latencies.csv` and the raw `rounds.jsonl`."""
    measure(spec, folder, parents, progress, time.perf_counter_ns, machine.synchroniser(spec["device"]))


def measure(
    spec: dict[str, Any],
    folder: Path,
    parents: dict[str, Path],
    progress: Progress,
    clock: Clock,
    synchronise: Callable[[], None],
) -> None:
    """Measure with the given clock and device synchronisation; see `run`."""
    session = Session(spec, folder, parents, progress, clock, synchronise)
    session.load()
    # Entered once: autocast lowers the weights during warm-up and keeps them, instead of inside the first timed batch.
    with inference(session.device, session.dtype):
        session.warm_up()
        session.count()
        session.time()
    session.write()


class Session:
    """One measurement of all cells of a task."""

    def __init__(
        self,
        spec: dict[str, Any],
        folder: Path,
        parents: dict[str, Path],
        progress: Progress,
        clock: Clock,
        synchronise: Callable[[], None],
    ) -> None:
        self.spec, self.folder, self.parents, self.progress = spec, folder, parents, progress
        self.clock, self.synchronise = clock, synchronise
        self.device, self.dtype = spec["device"], spec["dtype"]
        self.config = SpeedConfig(**spec["speed"])
        threads = self.config.threads or machine.available_cores()
        torch.set_num_threads(threads)
        self.environment = machine.environment(self.device, self.dtype, threads)
        self.data = PreparedData(parents["data"])
        self.hypotheses = [read_hypotheses(parents[f"hypotheses{i}"]) for i in range(len(spec["cells"]))]
        decoded_by_all = set.intersection(*map(set, self.hypotheses))
        self.sample = draw_sample(self.data, spec["split"], decoded_by_all, self.config.sentences)
        self.work = {
            size: make_workload(self.sample, size, self.config.batches_of(size))
            for size in {1, *self.config.batch_sizes}
        }
        self.points = [Point(cell["id"], size) for cell in spec["cells"] for size in self.config.batch_sizes]
        self.systems: dict[str, System] = {}
        self.observations: dict[str, Observation] = {}
        self.bounds: dict[Point, Bound] = {}
        self.shares: dict[Point, dict[str, float]] = {}
        self.roofs: dict[int, Roof] = {}
        """By the bytes of a model's weights."""
        self.journal = Journal(folder / JOURNAL, self.environment["fingerprint"])
        if (folder / EXCLUDED).exists():
            for entry in json.loads((folder / EXCLUDED).read_text(encoding="utf-8")):
                self._drop(entry["cell"], entry["batch_size"], Failure(entry["status"], entry["reason"]))

    @property
    def live(self) -> list[Point]:
        """The points that have not failed."""
        return [point for point in self.points if point not in self.journal.failures]

    def load(self) -> None:
        """Load the models, each checkpoint once, and count the passes of each system in an untimed run."""
        models: dict[str, Model] = {}
        for i, cell in enumerate(self.spec["cells"]):
            if not any(point.cell == cell["id"] for point in self.live):
                continue
            self.progress(done=0.0, stage=f"loading {cell['label']}")
            with self._charged(cell["id"], None):
                model = self._model(i, cell, models)
                settings = load_family(cell["family"]).settings(**cell["settings"])
                give_language_model(model, settings, self.data)
                scored = [self.hypotheses[i][sentence.id] for sentence in self.sample]
                system = System(model, settings, scored, self.data.data_spec, self.device)
                with inference(self.device, self.dtype):
                    self.observations[cell["id"]] = observe(system, self.work[1].batches)
                self.systems[cell["id"]] = system

    def _model(self, i: int, cell: dict[str, Any], loaded: dict[str, Model]) -> Model:
        """Return the model of cell i with its companions; equal ones of several cells are loaded once."""
        spec, companions = self.data.data_spec, cell["companions"]
        folders = [self.parents[f"model{i}"], *(self.parents[role_key(role, i)] for role in sorted(companions))]
        identity = json.dumps([list(map(str, folders)), cell["family"], cell["config"], companions], sort_keys=True)
        if identity not in loaded:
            model = load_model(cell["family"], cell["config"], spec, folders[0], self.device)
            model.companions = load_companions(companions, spec, self.parents, self.device, i)
            loaded[identity] = model
        return loaded[identity]

    def warm_up(self) -> None:
        """Decode batches over the whole range of lengths, untimed, until each point is stable."""
        for point in self.points:
            if point in self.live:
                self.progress(done=0.0, stage=f"warming up {point.cell} at batch {point.batch_size}")
                with self._charged(point.cell, point.batch_size):
                    system, batches = self.systems[point.cell], self.work[point.batch_size].batches
                    chosen = [batches[i] for i in spread(len(batches), WARM_UP_BATCHES)]
                    warm_up(lambda: sum(self._each(system, chosen)))  # noqa: B023 - called in this very turn

    def count(self) -> None:
        """Count what decoding must cost, and time its parts, if that is asked for."""
        for point in self.live if self.config.roofline or self.config.breakdown else ():
            if point.cell in self.systems and not self.systems[point.cell].settings.by_own_modules():
                continue
            self.progress(done=0.0, stage=f"counting {point.cell} at batch {point.batch_size}")
            with self._charged(point.cell, point.batch_size):
                system, batches = self.systems[point.cell], self.work[point.batch_size].batches
                chosen = spread(len(batches), COUNTED_BATCHES)
                if self.config.breakdown:
                    some = [batches[i] for i in chosen]
                    self.shares[point] = break_down(system, some, self.clock, self.synchronise)
                if self.config.roofline:
                    self.bounds[point] = bound_of(system, batches, chosen, self._roof(system.weight_bytes()))

    def _roof(self, weight_bytes: int) -> Roof:
        """Return what the device can do with weights of this size; measured once."""
        if weight_bytes not in self.roofs:
            self.roofs[weight_bytes] = measure_roof(self.device, self.dtype, weight_bytes, self.synchronise)
        return self.roofs[weight_bytes]

    def _each(self, system: System, batches: Sequence[SourceBatch]) -> list[int]:
        return time_each(system.decode, batches, self.clock, self.synchronise)[0]

    def time(self) -> None:
        """Time rounds until there are enough; see `due`."""
        while points := due(self.live, self.journal.timings, self.config):
            index = self.journal.next_round
            for point in round_order(points, index):
                # One that ran out of memory takes larger batches with it.
                if point not in self.journal.failures:
                    with self._charged(point.cell, point.batch_size):
                        self.journal.add(self._time(point, index))
                    done = share_done(self.live, self.journal.timings, self.config)
                    self.progress(done=done, stage="timing", round=index + 1)
            self.journal.complete(index)

    def _time(self, point: Point, index: int) -> Timing:
        system, work = self.systems[point.cell], self.work[point.batch_size]
        on_cuda = self.device.startswith("cuda")
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
            held = torch.cuda.memory_allocated(self.device)
        before = machine.sample_cpu()
        durations, outputs = time_each(system.decode, work.batches, self.clock, self.synchronise)
        after = machine.sample_cpu()
        # Other models lie on the device too: what decoding added counts, and this model's own weights.
        peak = torch.cuda.max_memory_allocated(self.device) - held + system.weight_bytes() if on_cuda else None
        return Timing(
            round=index,
            point=point,
            durations=tuple(durations),
            tokens=tuple(output.emitted() for output in outputs),
            tied=system.count_ties(outputs, work.indices),
            wall=after.wall - before.wall,
            foreign=after.foreign_since(before),
            peak_memory=peak,
            parts=self._time_parts([ids for output in outputs for ids in output.sentences()])
            if point.batch_size == 1
            else {},
        )

    def _time_parts(self, outputs: list[list[int]]) -> dict[str, int]:
        """Return the nanoseconds of turning what batch 1 decodes into ids or features, and `outputs` into text."""

        def total(work: Callable[[Any], Any], inputs: Sequence[Any]) -> int:
            return sum(time_each(work, inputs, self.clock, lambda: None)[0])

        examples = [self.sample[i].example for i in self.work[1].indices]
        if self.data.speech:
            before = {"features": total(self.data.extractor, [self.data.waveform(e) for e in examples])}
        else:
            before = {"tokenise": total(self.data.tokenizer.encode, [e.source for e in examples])}
        return {**before, "detokenise": total(self.data.tokenizer.decode, outputs)}

    def write(self) -> None:
        """Write the measurements and the latencies behind them."""
        measured = Measured(
            cells=self.spec["cells"],
            references=self.spec["references"],
            points=self.points,
            samples={size: self._counted(work.indices) for size, work in self.work.items()},
            timings=self.journal.timings,
            failures=self.journal.failures,
            observations=self.observations,
            bounds=self.bounds,
            shares=self.shares,
        )
        environment = {**self.environment, "sentences": len(self.sample), "split": self.spec["split"]}
        if self.config.max_batches is not None:
            environment["max_batches"] = self.config.max_batches
        if self.roofs:
            environment["roofs"] = [{"weight_bytes": size, **asdict(roof)} for size, roof in self.roofs.items()]
        write_json(
            self.folder / "measurements.json", {"measurements": measurements(measured), "environment": environment}
        )
        write_atomically(self.folder / "latencies.csv", self._latencies(measured))

    def _counted(self, indices: Sequence[int]) -> Sample:
        """Return how much the sentences `indices` of the sample are."""
        seconds = [float(self.sample[i].example.tags["seconds"]) for i in indices] if self.data.speech else None
        return Sample(len(indices), None if seconds is None else sum(seconds))

    def _latencies(self, measured: Measured) -> str:
        """Return every single-sentence time of the points that stand, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["cell", "sentence", "round", "milliseconds", "tokens"])
        for point in self.points:
            for timing in measured.of(point) if point.batch_size == 1 else []:
                for i, duration, tokens in zip(self.work[1].indices, timing.durations, timing.tokens, strict=True):
                    writer.writerow([point.cell, self.sample[i].id, timing.round, duration / 1e6, tokens])
        return text.getvalue()

    @contextmanager
    def _charged(self, cell: str, batch_size: int | None) -> Iterator[None]:
        """Charge what goes wrong inside to a point, or to a whole cell, and go on without it.

        Should the process itself die, `current.json` tells the runner what to leave out.
        """
        write_json(self.folder / CURRENT, {"cell": cell, "batch_size": batch_size})
        failure = None
        try:
            yield
        except Exception as error:
            failure = failure_of(error)
        (self.folder / CURRENT).unlink()
        # Out here the error and the tensors that its frames held are gone.
        if failure is not None:
            self._drop(cell, batch_size, failure)
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    def _drop(self, cell: str, batch_size: int | None, failure: Failure) -> None:
        """Give up a point; or all of a cell if no batch size is given; out of memory, also all larger ones."""
        for point in self.points:
            if point.cell != cell:
                continue
            if batch_size is None or point.batch_size == batch_size:
                self.journal.fail(point, failure)
            elif failure.status == "oom" and point.batch_size > batch_size:
                self.journal.fail(point, Failure("oom", f"out of memory at batch {batch_size} already"))


def failure_of(error: Exception) -> Failure:
    """Return what to report of an error: its status and one line."""
    if isinstance(error, StepFailure):
        return Failure("failed", str(error))
    # The CPU allocator of torch raises a plain RuntimeError.
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    return Failure("oom" if out_of_memory else "failed", reason_of(error))
