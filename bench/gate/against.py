"""The gate's job of timing the working tree against a commit."""

from __future__ import annotations

from collections.abc import Callable

from bench.gate.checkouts import checkout_of, ended_in_order, working_tree
from bench.gate.paired_speed import compare_checkouts
from bench.gate.verdicts import Finding
from bench.graph import Graph
from bench.protocol import BUSY
from bench.store import Store


def time_against(ref: str, graph: Graph, store: Store, note: Callable[[str], None]) -> tuple[list[Finding], str]:
    """Time the suite of `graph` with the code of commit `ref` and with that which runs now.

    store: where the suite's models are; note: is told what is being done. Thresholds are those of the suite file.

    Returns:
        The findings, and what to know of how they came about.

    Raises:
        UserError: no such commit, models that are missing, or a side that cannot run.
    """
    with ended_in_order(), checkout_of(ref, store.root / "environments") as baseline:
        outcome = compare_checkouts(graph, store, baseline, working_tree(), graph.suite.gate, note)
    line = f"Speed: {ref} ({baseline.commit[:9]}) and the working tree in turn, the same sentences and weights."
    if outcome.foreign is not None:
        line += f" Other processes used up to {outcome.foreign:.1f} % of a CPU core meanwhile."
        line += " Times are doubtful." if outcome.foreign > BUSY else ""
    return outcome.findings, line
