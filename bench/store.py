"""Content-addressed artifacts, written atomically.

An artifact is a folder `<root>/<kind>/<key>/`; its key hashes everything that it depends on. It is built in
`<root>/partial/<kind>-<key>/`, which survives a kill so that the next run resumes there, and is renamed into place
when complete. Logs lie in `<root>/logs/`. JSON and safetensors only: no pickle is ever loaded.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
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

    def log(self, kind: str, key: str) -> Path:
        """Return the file that takes what the artifact's worker writes to its standard error."""
        return self.root / "logs" / f"{kind}-{key}.log"

    def has(self, kind: str, key: str) -> bool:
        """Tell whether the artifact is complete."""
        return self.path(kind, key).is_dir()

    def build(self, kind: str, key: str, make: Callable[[Path], None]) -> bool:
        """Make an artifact by calling `make(folder)`, unless it is complete; return whether it was made here.

        What a killed process left in the folder is still there. Two processes never build one artifact at a time: the
        second waits, and finds it complete if the first succeeded.
        """
        with self.lock(f"{kind}-{key}"):
            final = self.path(kind, key)
            if final.is_dir():
                return False
            work = self.partial(kind, key)
            work.mkdir(parents=True, exist_ok=True)
            for leftover in work.rglob(".*.tmp"):  # of writes that a kill cut short
                leftover.unlink()
            make(work)
            for file in sorted(work.rglob("*")):
                flush(file)
            flush(work)
            final.parent.mkdir(parents=True, exist_ok=True)
            work.rename(final)
            flush(final.parent)
            return True

    def discard(self, kind: str, key: str) -> None:
        """Remove a complete artifact, so that it is made again."""
        with self.lock(f"{kind}-{key}"):
            shutil.rmtree(self.path(kind, key), ignore_errors=True)

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock `name` among all processes that use this store; the kernel frees it when the holder dies.

        Lock files are never removed: a process could be waiting for the removed one while another makes a new one.
        """
        path = self.root / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield


def flush(path: Path) -> None:
    """Wait until what was written to `path`, a file or a folder, is on the disk."""
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

    Local are this project's packages and those that `modules` name (an external family's). Comments, docstrings and
    layout do not count, so that mending them recomputes nothing.
    """
    seen: dict[str, str] = {}
    todo = list(modules)
    packages = tuple(sorted({*LOCAL_PACKAGES, *(name.split(".")[0] for name in todo)}))
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        digest, imports = _module_code(name, packages)
        seen[name] = digest
        todo.extend(imports)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:24]


@cache
def _module_code(name: str, packages: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {name!r}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(base, spec.parent)
            imports.append(module)
            imports += [f"{module}.{alias.name}" for alias in node.names]
    return hashlib.sha256(_dump(tree).encode()).hexdigest(), tuple(
        sorted({i for i in imports if i.split(".")[0] in packages and _is_module(i)})
    )


def _is_module(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    return spec is not None and spec.origin is not None  # a folder without __init__.py has no code of its own


def _dump(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_string(n)]
    return ast.dump(tree)


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
