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
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-std=c11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("cc", "gcc", "clang")
LIMIT_SECONDS = 120


def usable() -> bool:
    """Return whether nobody wants gradients, another arithmetic, or to see what PyTorch is asked for."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or torch.compiler.is_compiling()
    )


@dataclass(frozen=True)
class Library:
    """The compiled code."""

    code: Any
    """Its functions."""
    threaded: bool
    """Whether it can use PyTorch's threads."""
    made_by: str
    """What has compiled it, as it calls itself."""


@cache
def load_library() -> Library | None:
    """Return the compiled library, or None where it cannot be compiled or loaded."""
    try:
        compiler = _compiler()
        if compiler is None:
            return None
        code = _loaded(compiler)
        version = _version(compiler).decode(errors="replace").splitlines()[0]
    except (OSError, subprocess.SubprocessError, RuntimeError, ValueError, IndexError):  # also no home, a bad CC
        return None
    code.scratch_floats.restype = ctypes.c_int64
    runtime = _openmp()
    if runtime is not None:
        code.set_runtime(*runtime)
    return Library(code, runtime is not None, version)


def described() -> str | None:
    """Return what has compiled the library and whether it has threads; None if there is none."""
    library = load_library()
    return None if library is None else library.made_by + ("" if library.threaded else ", for one thread")


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if path := shutil.which(command[0]):
            return [path, *command[1:]]
    return None


def _loaded(compiler: list[str]) -> ctypes.CDLL:
    library = _compiled(compiler)
    try:
        return ctypes.CDLL(str(library))
    except OSError:  # damaged: once more
        library.unlink()
        return ctypes.CDLL(str(_compiled(compiler)))


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
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
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


def _openmp() -> tuple[ctypes.c_void_p, ...] | None:
    """Return GOMP_parallel, omp_get_num_threads and omp_get_thread_num as PyTorch itself calls them.

    None if PyTorch runs on another OpenMP than GNU's. Other libraries may have brought further copies of it, whose
    threads would hinder PyTorch's.
    """
    folder = Path(torch.__file__).parent / "lib"
    try:
        code = ctypes.CDLL(str(folder / "libtorch_cpu.so"))  # a symbol is looked up in what it depends on, too
        functions = (code.GOMP_parallel, code.omp_get_num_threads, code.omp_get_thread_num)
    except (OSError, AttributeError):
        return None
    return tuple(ctypes.cast(function, ctypes.c_void_p) for function in functions)
