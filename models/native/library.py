"""The C code of this package as a library: compiled for the processor at hand when it is first wanted.

It is kept in the user's cache (`XDG_CACHE_HOME`, else ~/.cache), under a name that follows from the source, the
compiler and the processor. Where there is no C compiler (`CC`, else cc, gcc or clang), PyTorch does the work.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("cc", "gcc", "clang")
LIMIT_SECONDS = 120
MAPS = Path("/proc/self/maps")


def usable() -> bool:
    """Return whether nobody wants gradients, another arithmetic, or to see what PyTorch is asked for."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack())


@cache
def load_library() -> ctypes.CDLL | None:
    """Return the compiled library, or None where it cannot be compiled or loaded."""
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError):
        return None
    library.scratch_floats.restype = ctypes.c_int64
    start, size = _openmp()
    library.set_runtime(start, size)
    return library


@cache
def made_by() -> str | None:
    """Return what has compiled the library, as it calls itself; None if there is none."""
    compiler = _compiler()
    if compiler is None or load_library() is None:
        return None
    return _version(compiler).decode(errors="replace").splitlines()[0]


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    return None


def _compiled(compiler: list[str]) -> Path:
    """Return the library, compiled unless it is there already.

    Raises:
        OSError: nothing can be written, or the compiler cannot be run.
        subprocess.SubprocessError: it fails.
    """
    parts = (SOURCE.read_bytes(), " ".join([*compiler, *FLAGS]).encode(), _version(compiler), _processor().encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natbench"
    library = folder / f"kernels-{digest}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            command = [*compiler, *FLAGS, "-shared", "-fPIC", str(SOURCE), "-o", str(made), "-lm"]
            subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_SECONDS)
            made.replace(library)  # whole or not at all, whoever else compiles it now
    return library


def _version(compiler: list[str]) -> bytes:
    command = [*compiler, "--version"]
    return subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_SECONDS).stdout


def _processor() -> str:
    """Return what tells processors apart for which the compiler makes different code."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    return platform.machine() + " ".join(sorted({line for line in lines if line.startswith(wanted)}))


def _openmp() -> tuple[ctypes.c_void_p | None, ctypes.c_void_p | None]:
    """Return GOMP_parallel and omp_get_num_threads of PyTorch's runtime; nothing if it is another one.

    Two runtimes in one process hinder each other, and only PyTorch's has the number of threads that is asked for.
    """
    try:
        maps = MAPS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, None
    loaded = sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line})
    if len(loaded) != 1:
        return None, None
    runtime = ctypes.CDLL(loaded[0])
    return (
        ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p),
        ctypes.cast(runtime.omp_get_num_threads, ctypes.c_void_p),
    )
