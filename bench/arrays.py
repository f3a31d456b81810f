"""NumPy files that grow row by row, for arrays that are too large to hold."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt


class ArrayFile:
    """A `.npy` file to append to; it holds what was appended once the `with` block ends."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, width: int | None = None) -> None:
        """Create `path` for an array [rows, width], or [rows] if there is no width."""
        self.rows = 0
        self._dtype = np.dtype(dtype)
        self._width = width
        self._file = path.open("wb")
        self._file.write(self._header())

    def append(self, part: npt.NDArray[np.generic]) -> None:
        """Add the rows of `part`, [rows, width] or [rows], of the file's type or one that converts to it."""
        assert part.shape[1:] == (() if self._width is None else (self._width,)), "rows of another width"
        self._file.write(np.ascontiguousarray(part, dtype=self._dtype).tobytes())
        self.rows += len(part)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file as file:
            file.seek(0)
            file.write(self._header())

    def _header(self) -> bytes:
        """Return the header for the rows there are; NumPy pads it, so that any number of rows takes equal space."""
        shape = (self.rows,) if self._width is None else (self.rows, self._width)
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        return header.getvalue()
