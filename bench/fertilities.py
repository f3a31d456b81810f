"""Fertility labels: how many target tokens a word aligner gives to each source token.

The aligner is eflomal (Östling & Tiedemann 2016), a Gibbs sampler for IBM model 1, then an HMM, then an HMM with
fertilities, run from source to target on the ids themselves. It gives a target token one source token or none.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import eflomal  # type: ignore[import-untyped]
import numpy as np

from bench.errors import UserError

LONGEST = 1023
"""Tokens of the longest sentence that eflomal takes; pairs with a longer one are aligned by position."""
SAMPLERS = 3
NULL_PRIOR = 0.2
"""eflomal's own defaults: independent samplers, and the prior probability that a target token has no source token."""
ENTROPY, SEED_FILE = b"/dev/urandom", b"urandom.seed"
"""Where eflomal takes its seed from, and a file of ours in its working folder, with a name of the same length."""


def fertilities(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_fertility: int, seed: int = 1
) -> list[list[int]]:
    """Return the fertility of each source token, per pair; they sum to the length of the target.

    A target token that the aligner leaves alone goes where the nearest aligned one went (the left of two), and if none
    is aligned the tokens spread evenly. What a source token has above `max_fertility` goes to the nearest one with
    room (again the left of two). A target with more than max_fertility * len(source) tokens has no fertilities: its
    list is empty. The same seed gives the same labels on one machine that runs Linux.

    Raises:
        ValueError: the numbers of sources and targets differ.
        UserError: eflomal cannot be run.
    """
    links = align(sources, targets, seed)
    return [
        _fertility(link, len(source), len(target), max_fertility)
        for link, source, target in zip(links, sources, targets, strict=True)
    ]


def align(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], seed: int) -> list[dict[int, int]]:
    """Return the aligned source position by target position, per pair; target tokens may be missing.

    Pairs with an empty or overlong side have no links.

    Raises:
        ValueError: the numbers of sources and targets differ.
        UserError: eflomal cannot be run.
    """
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets")
    usable = [
        i for i, pair in enumerate(zip(sources, targets, strict=True)) if all(1 <= len(x) <= LONGEST for x in pair)
    ]
    links: list[dict[int, int]] = [{} for _ in sources]
    if not usable:
        return links
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "source", [sources[i] for i in usable])
        _write(folder / "target", [targets[i] for i in usable])
        _run(folder, len(usable), seed)
        with (folder / "links").open(encoding="ascii") as file:
            for i, line in zip(usable, file, strict=True):
                pairs = (link.split("-") for link in line.split())
                links[i] = {int(target): int(source) for source, target in pairs}
    return links


def _write(path: Path, sentences: Sequence[Sequence[int]]) -> None:
    """Write sentences in eflomal's format, with ids renumbered so that none is unused."""
    vocabulary, dense = np.unique(np.concatenate([np.asarray(s) for s in sentences]), return_inverse=True)
    rows = np.split(dense, np.cumsum([len(s) for s in sentences])[:-1])
    with path.open("w", encoding="ascii") as file:
        file.write(f"{len(sentences)} {len(vocabulary)}\n")
        file.writelines(f"{len(row)} {' '.join(map(str, row.tolist()))}\n" for row in rows)


def _run(folder: Path, pairs: int, seed: int) -> None:
    """Align the files `source` and `target` of `folder` into `links`."""
    # The schedule of eflomal's own front end: the more text, the fewer rounds.
    rounds = max(2, round(5000 / math.sqrt(pairs)))
    options = [
        *("-q", "-m", "3", "-n", str(SAMPLERS), "-N", str(NULL_PRIOR)),
        *("-s", "source", "-t", "target", "-f", "links"),
        *("-1", str(max(2, rounds // 4)), "-2", str(max(1, rounds // 4)), "-3", str(rounds)),
    ]
    # With several threads the samplers would get their seeds in the order in which they happen to start.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = partial(subprocess.run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    try:
        try:
            done = run([str(_seeded_aligner(folder, seed)), *options])
        except PermissionError:  # no program may be run from the folder of temporary files
            done = run([str(_aligner()), *options])
    except OSError as error:
        raise UserError(f"eflomal, the word aligner, cannot be run: {error}") from error
    if done.returncode:
        raise UserError(f"eflomal, the word aligner, failed with status {done.returncode}: {done.stderr.strip()}")


def _aligner() -> Path:
    """Return eflomal's program."""
    return Path(eflomal.__file__).parent / "bin" / "eflomal"


def _seeded_aligner(folder: Path, seed: int) -> Path:
    """Return a copy of eflomal's program in `folder` that draws from `seed`.

    eflomal 2.0 has no option for that: it reads eight bytes from the system's entropy. The copy reads them from a file.
    Where that is not possible (other systems than Linux, another version; a folder of temporary files that no program
    may be run from, which only running it shows) it is the program itself, unseeded; labels
    are then as good, but not the same when they are made anew.
    """
    program = _aligner()
    try:
        code = program.read_bytes()
    except OSError as error:
        raise UserError(f"eflomal, the word aligner, is not installed as expected: {error}") from error
    name = b"\0" + ENTROPY + b"\0"
    if sys.platform != "linux" or code.count(name) != 1:
        return program
    copy = folder / "eflomal"
    copy.write_bytes(code.replace(name, b"\0" + SEED_FILE + b"\0"))
    copy.chmod(0o700)
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    (folder / SEED_FILE.decode()).write_bytes(state.tobytes())
    return copy


def _fertility(link: dict[int, int], sources: int, targets: int, most: int) -> list[int]:
    """Return the fertilities of one pair, given the source position of each aligned target position."""
    if targets > most * sources:
        return []
    counts = [0] * sources
    for place in _places(link, sources, targets):
        counts[place] += 1
    for i in range(sources):
        while counts[i] > most:
            nearest = min((abs(k - i), k) for k in range(sources) if counts[k] < most)[1]
            counts[i] -= 1
            counts[nearest] += 1
    return counts


def _places(link: dict[int, int], sources: int, targets: int) -> list[int]:
    """Return a source position for every target position: its own, or that of the nearest one that has one."""
    if not link:
        return [i * sources // targets for i in range(targets)]
    places = []
    known = sorted(link)
    for i in range(targets):
        after = bisect_left(known, i)  # the first known position from i on is known[after]
        nearest = min((abs(j - i), j) for j in known[max(after - 1, 0) : after + 1])[1]
        places.append(link[nearest])
    return places
