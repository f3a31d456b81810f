import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bench.errors import DataError
from bench.fetch import data_root, locate, sha256_of

CONTENT = b"some data\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NOWHERE = "file:///no/such/folder/x.txt"
"""A download from here fails, so a test that passes with it did not download."""


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    path = tmp_path / "remote" / "x.txt"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "data"
    monkeypatch.setenv("NATBENCH_DATA", str(path))
    return path


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def error_of(url: str, sha256: str | None = SHA256, filename: str = "x.txt") -> str:
    with pytest.raises(DataError) as caught:
        locate("task", filename, url, sha256)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_root_is_the_variable_or_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NATBENCH_DATA", raising=False)
    assert data_root() == tmp_path / ".cache" / "natbench"
    monkeypatch.setenv("NATBENCH_DATA", "~/elsewhere")
    assert data_root() == tmp_path / "elsewhere"


def test_present_file_is_found_without_network_and_nothing_is_written(root: Path) -> None:
    path = put(root / "task" / "x.txt", CONTENT)
    assert locate("task", "x.txt", NOWHERE, SHA256) == path
    assert files(root) == {"task/x.txt"}


def test_present_file_of_other_content_is_refused_naming_both_checksums(root: Path) -> None:
    path = put(root / "task" / "x.txt", b"other")
    message = error_of(NOWHERE)
    for part in (str(path), SHA256, hashlib.sha256(b"other").hexdigest()):
        assert part in message
    assert path.read_bytes() == b"other"


def test_folder_where_the_file_belongs_is_refused(root: Path) -> None:
    (root / "task" / "x.txt").mkdir(parents=True)
    assert f"{root / 'task' / 'x.txt'}: cannot be read" in error_of(NOWHERE)


def test_download_into_folders_that_do_not_exist_yet(root: Path, remote: Path) -> None:
    path = locate("task", "x.txt", remote.as_uri(), SHA256)
    assert path == root / "task" / "x.txt"
    assert path.read_bytes() == CONTENT
    assert files(root) == {".natbench", "task/.natbench", "task/x.txt"}
    assert locate("task", "x.txt", NOWHERE, SHA256) == path
    # The folders are the harness's now, so a second file and a second task may come.
    assert locate("task", "y.txt", remote.as_uri(), SHA256).exists()
    assert locate("other", "x.txt", remote.as_uri(), SHA256).exists()


def test_download_into_an_empty_folder_of_the_user(root: Path, remote: Path) -> None:
    root.mkdir()
    assert locate("task", "x.txt", remote.as_uri(), SHA256).read_bytes() == CONTENT


def test_download_into_the_cache(tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NATBENCH_DATA", raising=False)
    put(tmp_path / ".cache" / "natbench" / "store" / "artifact", b"")
    assert locate("task", "x.txt", remote.as_uri(), SHA256) == tmp_path / ".cache" / "natbench" / "task" / "x.txt"


@pytest.mark.parametrize("foreign", ["task/mine.txt", "other/mine.txt", "mine.txt"])
def test_folder_that_somebody_else_filled_is_only_read(root: Path, remote: Path, foreign: str) -> None:
    put(root / foreign, b"")
    message = error_of(remote.as_uri())
    for part in ("only read", remote.as_uri(), str(root / "task"), "NATBENCH_DATA", "task/x.txt"):
        assert part in message
    assert files(root) == {foreign}


def test_root_that_cannot_be_written(root: Path, remote: Path) -> None:
    put(root, b"a file, not a folder")
    message = error_of(remote.as_uri())
    assert str(root / "task") in message
    assert "NATBENCH_DATA" in message


@pytest.mark.parametrize("url", [NOWHERE, "http://127.0.0.1:1/x.txt"])
def test_failed_download_names_url_folder_and_variable_and_leaves_no_file(
    root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    message = error_of(url)
    for part in (url, str(root / "task"), "NATBENCH_DATA"):
        assert part in message
    assert files(root) == {".natbench", "task/.natbench"}


def test_download_of_other_content_is_refused_and_leaves_no_file(root: Path, remote: Path) -> None:
    remote.write_bytes(b"other")
    message = error_of(remote.as_uri())
    for part in (remote.as_uri(), SHA256, hashlib.sha256(b"other").hexdigest()):
        assert part in message
    assert files(root) == {".natbench", "task/.natbench"}


def test_without_checksum_a_damaged_gzip_file_is_refused(root: Path, remote: Path) -> None:
    intact = gzip.compress(CONTENT)
    for damaged in (intact[:-1], b"\x00" + intact, intact[:-8] + b"\x00" * 8):
        remote.write_bytes(damaged)
        assert "not an intact gzip file" in error_of(remote.as_uri(), sha256=None, filename="x.gz")
        assert files(root) == {".natbench", "task/.natbench"}
    remote.write_bytes(intact)
    path = locate("task", "x.gz", remote.as_uri(), None)
    path.write_bytes(intact[:-1])
    assert f"{path} is not an intact gzip file" in error_of(NOWHERE, sha256=None, filename="x.gz")


class _Handler(BaseHTTPRequestHandler):
    """Answers /whole with all of CONTENT, /short with less than it announces, anything else with 404."""

    def do_GET(self) -> None:
        if self.path not in ("/whole", "/short"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[:4])

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_download_over_http(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as address:
        assert "404" in error_of(f"{address}/missing")
        assert "broke off after 4 of 10 bytes" in error_of(f"{address}/short", sha256=None)
        assert files(root) == {".natbench", "task/.natbench"}
        assert locate("task", "x.txt", f"{address}/whole", None).read_bytes() == CONTENT


def test_sha256_of_a_file(tmp_path: Path) -> None:
    # The SHA-256 of "abc" is the first example of FIPS 180-2.
    path = put(tmp_path / "abc", b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError, match=f"{tmp_path / 'none'}: no such file"):
        sha256_of(tmp_path / "none")
