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
import re
import shutil
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

LOCAL_PACKAGES = ("models", "bench")
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of packages that were installed; their versions are known by name."""


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

    Local are this project's packages, those that `modules` name (an external family's), and all else that is neither
    of the standard library nor installed: a helper that lies beside a family. Comments, docstrings and layout do not
    count, so that mending them recomputes nothing; C code that lies beside a module which names its file counts as it
    is. Nothing is imported for it.

    Raises:
        ModuleNotFoundError: one of `modules` is not there.
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
    """Return a hash of the module's code, and the local modules that it imports, those in `packages` among them."""
    file, _ = _find(name)
    if file is None:
        raise ModuleNotFoundError(f"no module {name!r}")
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a family may keep what it never imports
        return hashlib.sha256(content).hexdigest(), ()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: max(0, len(parts) - node.level + 1)] if node.level else []
            module = ".".join(filter(None, [*above, node.module]))
            imports |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    # A package's own code runs before that of its modules; this project's packages have none but a version.
    for module in [name, *imports]:
        parts = module.split(".")
        if parts[0] not in LOCAL_PACKAGES:
            imports |= {".".join(parts[:i]) for i in range(1, len(parts))}
    local = sorted(module for module in imports - {name} if _is_local(module, packages))
    compiled = [path.read_bytes() for path in _c_files(tree, file.parent)]
    return hashlib.sha256(b"\0".join([_dump(tree).encode(), *compiled])).hexdigest(), tuple(local)


def _c_files(tree: ast.Module, folder: Path) -> list[Path]:
    """Return the files of C code in `folder` whose names the module holds."""
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    names = [value for value in strings if isinstance(value, str) and re.fullmatch(r"\w+\.c", value)]
    return [folder / name for name in names if (folder / name).is_file()]


def _is_local(name: str, packages: tuple[str, ...]) -> bool:
    file, _ = _find(name)
    if file is None:
        return False
    if name.split(".", 1)[0] in packages:
        return True
    installed = not INSTALLED.isdisjoint(file.parts)
    return not installed and not any(file.resolve().is_relative_to(folder) for folder in _standard_library())


@cache
def _standard_library() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


@cache
def _find(name: str) -> tuple[Path | None, tuple[Path, ...]]:
    """Return the source file of a module, None if it has none, and of a package the folders that hold its modules.

    `importlib.util.find_spec` would import the packages around the module, and all that they import.
    """
    above, _, last = name.rpartition(".")
    if not above:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # no name of a module, or what stands under it did not come from a file
            spec = None
        if spec is None:
            return None, ()
        file = Path(spec.origin) if spec.has_location and spec.origin else None
        folders = tuple(map(Path, spec.submodule_search_locations or ()))
        return (file if file is not None and file.suffix == ".py" else None), folders
    for folder in (around := _find(above)[1]):
        for file in (folder / last / "__init__.py", folder / f"{last}.py"):
            if file.is_file():
                return file, (file.parent,) if file.name == "__init__.py" else ()
    return None, tuple(folder / last for folder in around if (folder / last).is_dir())  # has no code of its own


def _dump(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_string(n)]
    return ast.dump(tree)


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
