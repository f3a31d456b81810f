"""How often the gate of speed is wrong, tried on this machine: `python -m tests.bench.gate.trials SUITE [options]`.

Each trial is a whole gate between two checkouts: the same code twice, or a copy in which one family sleeps for a share
of its own decoding time. The suite must have been run with the store that is named, and the machine must be quiet.
Printed is a line a trial, then how many gates raised a false alarm and how many caught what was planted.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.execution import find_conditions
from bench.gate.checkouts import SOURCE, working_tree
from bench.gate.paired_speed import compare_checkouts
from bench.gate.turns import Checkout
from bench.gate.verdicts import Verdict
from bench.graph import build_graph
from bench.store import Store, default_root
from bench.suite import load_suite
from models.registry import load_family

PLANTED = """

def _plant():
    import time
    decode = FAMILY.model.decode
    def slow(self, *arguments, **options):
        begun = time.perf_counter()
        decoded = decode(self, *arguments, **options)
        time.sleep({share} * (time.perf_counter() - begun))
        return decoded
    FAMILY.model.decode = slow
_plant()
"""


def planted(root: Path, family: str, share: float) -> Checkout:
    """Copy the code to `root`, with `family` made slower: it takes `share` longer."""
    for package in ("bench", "models"):
        shutil.copytree(SOURCE / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = Path(sys.modules[load_family(family).model.__module__].__file__ or "")
    with (root / file.relative_to(SOURCE)).open("a", encoding="utf-8") as code:
        code.write(PLANTED.format(share=share))
    return Checkout(root, Path(sys.executable))


def main(
    suite: Path,
    count: int = 100,
    slow: Annotated[str | None, typer.Option(help="Family to make slower; none: the same code twice.")] = None,
    share: Annotated[float, typer.Option(help="By how much longer it takes.")] = 0.25,
    only: str | None = None,
    store: Path | None = None,
) -> None:
    """Run the trials."""
    chosen = load_suite(suite) if only is None else load_suite(suite).select(only.split(","))
    graph = build_graph(chosen, find_conditions("auto", "auto"))
    alarms = caught = 0
    with tempfile.TemporaryDirectory(prefix="natbench-trials-") as folder:
        candidate = planted(Path(folder), slow, share) if slow else working_tree()
        slowed = {system.name for system in chosen.systems if system.family == slow}
        for trial in range(count):
            begun = time.monotonic()
            outcome = compare_checkouts(
                graph, Store(store or default_root()), working_tree(), candidate, chosen.gate, typer.echo, seed=trial
            )
            found = {f for f in outcome.findings if f.verdict is Verdict.REGRESSED}
            false = [f for f in found if f.key[1] not in slowed]
            alarms += bool(false)
            caught += len(found) > len(false)
            unclear = sum(f.verdict is Verdict.INCONCLUSIVE for f in outcome.findings)
            seconds = time.monotonic() - begun
            typer.echo(
                f"trial {trial + 1}: {seconds:.0f} s, {len(outcome.findings)} points, {unclear} inconclusive, "
                f"{len(found) - len(false)} caught, {len(false)} false, others' CPU {outcome.foreign or 0:.0f} %"
            )
    typer.echo(f"{alarms} of {count} gates raised a false alarm{f'; {caught} caught what was planted' if slow else ''}")


if __name__ == "__main__":
    typer.run(main)
