from pathlib import Path

import numpy as np
import pytest

from bench.arrays import ArrayFile


@pytest.mark.parametrize("width", [None, 3], ids=["one-axis", "two-axes"])
@pytest.mark.parametrize("sizes", [[], [0], [2, 0, 5], [1] * 1000], ids=["none", "empty", "some", "many"])
def test_file_holds_what_was_appended(tmp_path: Path, width: int | None, sizes: list[int]) -> None:
    rest = () if width is None else (width,)
    parts = [np.arange(np.prod([n, *rest]), dtype=np.int16).reshape(n, *rest) + i for i, n in enumerate(sizes)]
    with ArrayFile(tmp_path / "x.npy", np.int16, width) as file:
        for part in parts:
            file.append(part)
        assert file.rows == sum(sizes)
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.concatenate([np.zeros((0, *rest)), *parts]))


def test_file_is_what_numpy_itself_would_write(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float16)
    with ArrayFile(tmp_path / "grown.npy", np.float16, 4) as file:
        file.append(rows[:2])
        file.append(rows[2:])
    np.save(tmp_path / "whole.npy", rows)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_rows_are_converted_and_may_be_views(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(2, 6)
    with ArrayFile(tmp_path / "x.npy", np.float16, 2) as file:
        file.append(rows.T)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows.T.astype(np.float16))


def test_rows_of_another_width_are_no_rows(tmp_path: Path) -> None:
    with ArrayFile(tmp_path / "x.npy", np.float16, 2) as file:
        with pytest.raises(AssertionError, match="another width"):
            file.append(np.zeros((2, 3)))
        with pytest.raises(AssertionError, match="another width"):
            file.append(np.zeros(2))
