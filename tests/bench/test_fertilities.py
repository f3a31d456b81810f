"""Fertility labels from eflomal's word alignment."""

import random
import stat

import eflomal
import pytest

from bench import fertilities as module
from bench.errors import UserError
from bench.fertilities import align, fertilities


def parallel(count, seed=0, swap=0.0):
    """Pairs of a language whose word w always becomes the w % 4 words of its own, and their true fertilities.

    Neighbours trade places in the target with probability `swap`.
    """
    rng = random.Random(seed)
    sources, targets = [], []
    for _ in range(count):
        source = [rng.randrange(7, 47) for _ in range(rng.randint(3, 10))]
        order = list(range(len(source)))
        for i in range(0, len(source) - 1, 2):
            if rng.random() < swap:
                order[i], order[i + 1] = order[i + 1], order[i]
        sources.append(source)
        targets.append([1000 + 10 * source[i] + k for i in order for k in range(source[i] % 4)])
    return sources, targets, [[w % 4 for w in source] for source in sources]


@pytest.mark.parametrize(("swap", "share"), [(0.0, 0.8), (0.5, 0.75)])
def test_known_fertilities_are_recovered(swap, share):
    sources, targets, gold = parallel(400, swap=swap)
    got = fertilities(sources, targets, 50)
    assert [sum(row) for row in got] == [len(target) for target in targets]
    right = sum(a == b for a, b in zip(got, gold, strict=True)) / len(gold)
    # Even shares of the target would be right for few.
    even = [module._fertility({}, len(s), len(t), 50) for s, t in zip(sources, targets, strict=True)]
    assert sum(a == b for a, b in zip(even, gold, strict=True)) / len(gold) < 0.1
    assert right > share


def test_the_alignment_itself_follows_swapped_words():
    sources, targets, _ = parallel(400, swap=0.5)
    links = align(sources, targets, seed=1)
    aligned = [(s[i], t[j]) for s, t, link in zip(sources, targets, links, strict=True) for j, i in link.items()]
    right = sum((target - 1000) // 10 == source for source, target in aligned)
    assert right / sum(map(len, targets)) > 0.9


def test_a_seed_gives_the_same_labels_and_another_seed_others():
    sources, targets, _ = parallel(60, swap=0.5)
    first = align(sources, targets, seed=1)
    assert align(sources, targets, seed=1) == first
    assert align(sources, targets, seed=2) != first


def test_empty_and_overlong_sides_shift_no_other_pair():
    sources, targets, _ = parallel(200)
    sources = [[], [8, 9], [], [8] * 1024, *sources]
    targets = [[1080], [], [], [1080] * 1024, *targets]
    got = fertilities(sources, targets, 50)
    assert got[:3] == [[], [0, 0], []]
    assert got[3] == [1] * 1024  # by position
    assert got[4:] == fertilities(sources[4:], targets[4:], 50)


def test_nothing_to_align():
    assert fertilities([], [], 50) == []
    assert fertilities([[], [5]], [[6], []], 50) == [[], [0]]
    with pytest.raises(ValueError, match="1 sources and 2 targets"):
        fertilities([[1]], [[1], [2]], 50)


@pytest.mark.parametrize(
    ("link", "sources", "targets", "most", "expected"),
    [
        ({0: 0, 1: 2, 2: 1}, 3, 3, 50, [1, 1, 1]),
        ({0: 1, 1: 1, 2: 1}, 3, 3, 50, [0, 3, 0]),
        ({0: 0, 3: 1}, 2, 4, 50, [2, 2]),  # target 1 is nearer to 0, and 2 to 3
        ({0: 0, 2: 1}, 2, 3, 50, [2, 1]),  # 1 is as near to both: the left one
        ({2: 1}, 2, 4, 50, [0, 4]),
        ({}, 2, 4, 50, [2, 2]),
        ({}, 4, 2, 50, [1, 0, 1, 0]),
        ({}, 3, 0, 50, [0, 0, 0]),
        ({}, 0, 0, 50, []),
        ({0: 1, 1: 1, 2: 1, 3: 1}, 3, 4, 2, [2, 2, 0]),  # both neighbours are as near: left while it has room
        (dict.fromkeys(range(5), 0), 3, 5, 2, [2, 2, 1]),  # what the neighbour has no room for goes on
        (dict.fromkeys(range(6), 2), 3, 6, 2, [2, 2, 2]),
        (dict.fromkeys(range(7), 0), 3, 7, 2, []),  # cannot fit
        ({}, 0, 3, 2, []),
    ],
)
def test_links_become_fertilities_by_hand(link, sources, targets, most, expected):
    assert module._fertility(link, sources, targets, most) == expected


def test_sums_and_limits_hold_for_any_links():
    rng = random.Random(0)
    for _ in range(300):
        s, t, most = rng.randint(1, 8), rng.randint(0, 12), rng.randint(1, 4)
        link = {j: rng.randrange(s) for j in range(t) if rng.random() < 0.6}
        got = module._fertility(link, s, t, most)
        if t > most * s:
            assert got == []
        else:
            assert sum(got) == t
            assert len(got) == s
            assert max(got) <= most


def test_the_limit_reaches_the_labels():
    sources, targets, _ = parallel(200)
    got = fertilities(sources, targets, 2)
    for source, target, row in zip(sources, targets, got, strict=True):
        assert (sum(row) == len(target) and max(row) <= 2) if len(target) <= 2 * len(source) else row == []
    assert any(row == [] for row in got)


def fake_program(folder, monkeypatch, content):
    """Put a program in the place of eflomal's."""
    program = folder / "bin" / "eflomal"
    program.parent.mkdir()
    program.write_bytes(content)
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(eflomal, "__file__", str(folder / "__init__.py"))


def test_a_program_that_cannot_be_seeded_runs_unseeded(tmp_path, monkeypatch):
    fake_program(tmp_path, monkeypatch, b"#!/bin/sh\necho 0-0 > links\n")
    assert fertilities([[1]], [[2]], 50) == [[1]]


def test_a_program_that_cannot_be_run_is_named(tmp_path, monkeypatch):
    fake_program(tmp_path, monkeypatch, b"#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "eflomal").write_bytes(b"#!/bin/sh\necho no memory >&2\nexit 3\n#\0/dev/urandom\0")
    with pytest.raises(UserError, match="status 3: no memory"):
        fertilities([[1]], [[2]], 50)
    (tmp_path / "bin" / "eflomal").write_bytes(b"#!/no/such/shell\n#\0/dev/urandom\0")
    with pytest.raises(UserError, match="cannot be run"):
        fertilities([[1]], [[2]], 50)
    (tmp_path / "bin" / "eflomal").unlink()
    with pytest.raises(UserError, match="not installed"):
        fertilities([[1]], [[2]], 50)
