"""Finds a task's data files in a local folder, or downloads them into it.

A file lies at `<root>/<task>/<filename>`. If it is there, no network is touched. Folders that somebody else filled are
only read: under `$NATBENCH_DATA` a download goes into folders that the harness made, or found empty, and nowhere else.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from bench.errors import DataError

VARIABLE = "NATBENCH_DATA"
"""Environment variable that names the root."""
TIMEOUT = 30.0
"""Seconds without an answer or a byte after which a download is given up."""
_MARKER = ".natbench"
"""Empty file in each folder under `$NATBENCH_DATA` that downloads may go into."""
_CHUNK = 1 << 20


def data_root() -> Path:
    """Return `$NATBENCH_DATA`, by default `~/.cache/natbench`."""
    root = os.environ.get(VARIABLE)
    return Path(root).expanduser() if root else Path.home() / ".cache" / "natbench"


def locate(task: str, filename: str, url: str, sha256: str | None) -> Path:
    """Return the path of a data file, downloaded first if it is not there.

    Args:
        task: the folder below the root.
        filename: the file's name in it.
        url: where the file is downloaded from.
        sha256: its checksum. None if there is no trusted one: then a `.gz` file is verified by gzip's own checksum.

    Raises:
        DataError: the file is damaged or not the expected one, or it is missing and cannot be downloaded.
    """
    path = data_root() / task / filename
    if os.access(path, os.F_OK):
        _verify(path, sha256, gzipped=path.suffix == ".gz", called=str(path))
    else:
        _download(url, path, sha256)
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _verify(path: Path, sha256: str | None, *, gzipped: bool, called: str) -> None:
    """Check the content of `path`, which errors name `called`."""
    found = sha256_of(path)
    if sha256 is not None:
        if found != sha256:
            raise DataError(f"{called} is damaged or another version: expected SHA-256 {sha256}, found {found}")
    elif gzipped:
        try:
            with gzip.open(path) as file:
                while file.read(_CHUNK):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{called} is not an intact gzip file: {error}") from error


def _download(url: str, path: Path, sha256: str | None) -> None:
    """Download `url` to a temporary name beside `path`, verify it, and rename it to `path`."""
    folder = path.parent
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        if os.environ.get(VARIABLE):
            _claim(folder.parent)
            _claim(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _copy(url, temporary)
            _verify(temporary, sha256, gzipped=path.suffix == ".gz", called=url)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise DataError(
            f"{path.name} is not in {folder} and {url} cannot be downloaded there ({' '.join(str(reason).split())}); "
            f"put the file there, or set {VARIABLE} to a folder that holds {folder.name}/{path.name}"
        ) from error


def _claim(folder: Path) -> None:
    """Make `folder` one that downloads may go into; refuse if somebody else filled it."""
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if names and _MARKER not in names:
        raise PermissionError(f"{folder} holds files that the harness did not put there, so it is only read")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()


def _copy(url: str, path: Path) -> None:
    """Write what `url` gives to `path`, all of it."""
    try:
        response = urllib.request.urlopen(url, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:  # it holds the open connection
            raise ConnectionError(f"the server answers {error.code} {error.reason}") from None
    with response, path.open("wb") as file:
        shutil.copyfileobj(response, file, _CHUNK)
        file.flush()
        os.fsync(file.fileno())
        announced = response.headers.get("Content-Length")
        # A connection that breaks off looks like the end of the file; only the announced length tells them apart.
        if announced is not None and file.tell() != int(announced):
            raise ConnectionError(f"the connection broke off after {file.tell()} of {announced} bytes")
