"""Content-addressed artifacts, written atomically.

An artifact is a folder `<root>/<kind>/<key>/`; its key hashes everything that it depends on. It is built in
`<root>/partial/<kind>-<key>/`, which survives a kill so that the next run resumes there, and is renamed into place
when complete. JSON and safetensors only: no pickle is ever loaded.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

LOCAL_PACKAGES = ("models", "bench")


def default_root() -> Path:
    """Return `$NATBENCH_STORE`, by default `~/.cache/natbench/store`."""
    root = os.environ.get("NATBENCH_STORE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "natbench" / "store"


class Store:
    """A folder of artifacts."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str) -> Path:
        """Return where the artifact lies, or will lie."""
        return self.root / kind / key

    def partial(self, kind: str, key: str) -> Path:
        """Return the folder in which an unfinished artifact is built."""
        return self.root / "partial" / f"{kind}-{key}"

    def has(self, kind: str, key: str) -> bool:
        """Tell whether the artifact is complete."""
        return self.path(kind, key).is_dir()

    @contextmanager
    def building(self, kind: str, key: str) -> Iterator[Path]:
        """Yield the folder to build the artifact in; on success it becomes the artifact.

        What a killed process left there is still there. Two processes never build one artifact at a time: the second
        waits, and if the first has finished it, its own work is discarded.
        """
        work = self.partial(kind, key)
        work.parent.mkdir(parents=True, exist_ok=True)
        with (work.parent / f"{work.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            work.mkdir(exist_ok=True)
            yield work
            final = self.path(kind, key)
            if final.is_dir():
                shutil.rmtree(work)
                return
            for file in sorted(work.rglob("*")):
                if file.is_file():
                    _fsync(file)
            final.parent.mkdir(parents=True, exist_ok=True)
            work.rename(final)
            _fsync(final.parent)
        (work.parent / f"{work.name}.lock").unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` with `content` so that a reader, or a kill, sees the old file or the new one and nothing else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def key_of(description: Any) -> str:
    """Return the key of an artifact: a hash of the canonical JSON of all it depends on."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:24]


def code_fingerprint(modules: Iterable[str]) -> str:
    """Hash the code that `modules` consist of: their syntax trees and those of every local module they import.

    Comments, docstrings and layout do not count, so that mending them recomputes nothing.
    """
    seen: dict[str, str] = {}
    todo = list(modules)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        digest, imports = _module_code(name)
        seen[name] = digest
        todo.extend(imports)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:24]


@cache
def _module_code(name: str) -> tuple[str, tuple[str, ...]]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {name!r}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports.append(node.module)
            imports += [f"{node.module}.{alias.name}" for alias in node.names]
    return hashlib.sha256(_dump(tree).encode()).hexdigest(), tuple(
        sorted({i for i in imports if i.split(".")[0] in LOCAL_PACKAGES and _is_module(i)})
    )


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _dump(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_string(n)]
    return ast.dump(tree)


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
