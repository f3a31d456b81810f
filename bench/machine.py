"""The machine: device, threads, CPU load of other processes, and the facts that a measurement must state.

Torch is imported only where it is needed, so that programs that present records can use the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PROC_STAT = Path("/proc/stat")
LIBRARIES = ("torch", "numpy", "sacrebleu", "sentencepiece", "safetensors", "babel", "ctranslate2", "transformers")


def available_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_device(requested: str | None) -> str:
    """Return the device to use: what was asked for, or CUDA where there is one, else the CPU.

    Raises:
        ValueError: a CUDA device was asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if requested in (None, "auto"):
        return "cuda" if available else "cpu"
    assert requested is not None
    if torch.device(requested).type == "cuda" and not available:
        raise ValueError(f"device {requested!r}: torch sees no CUDA device here; there is: cpu")
    return requested


def resolve_dtype(requested: str | None, device: str) -> str:
    """Return the arithmetic of decoding: what was asked for, else bfloat16 on CUDA and float32 on the CPU."""
    if requested in (None, "auto"):
        return "bfloat16" if device.startswith("cuda") else "float32"
    assert requested is not None
    return requested


def synchroniser(device: str) -> Callable[[], None]:
    """Return a function that waits until `device` has done all that was asked of it."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return lambda: torch.cuda.synchronize(device)


@dataclass(frozen=True)
class CpuSample:
    """CPU time used up to now, in seconds."""

    busy: float | None
    """By all processes over all cores, time stolen by a hypervisor included; None where the system does not tell."""
    own: float
    """By this process and those that it has started and that still run, all threads."""
    wall: float

    def foreign_since(self, earlier: CpuSample) -> float | None:
        """Return the CPU seconds that others used since `earlier`.

        The system counts in ticks of about 10 ms: a short stretch can come out slightly negative. Sum before clamping.
        """
        if self.busy is None or earlier.busy is None:
            return None
        return (self.busy - earlier.busy) - (self.own - earlier.own)


def sample_cpu(stat: Path = PROC_STAT) -> CpuSample:
    """Read the CPU times of the system and of this process and its children."""
    own = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended by now
            times = child.cpu_times()
            own += times.user + times.system
    return CpuSample(busy=busy_seconds(stat), own=own, wall=time.perf_counter())


def busy_seconds(stat: Path = PROC_STAT) -> float | None:
    """Return the seconds that all cores together have been busy since boot, None where there is no /proc/stat.

    The columns of the `cpu` line are user, nice, system, idle, iowait, irq, softirq, steal, and guest times that user
    and nice already hold (proc(5)).
    """
    try:
        with stat.open(encoding="ascii") as file:
            columns = file.readline().split()
    except OSError:
        return None
    if len(columns) < 9 or columns[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Return the facts to state beside measurements, JSON-serialisable.

    `fingerprint` is the same for two runs exactly when their times may be compared, `arithmetic` when the same training
    should end in the same weights: machines that differ in it round differently.
    """
    import torch

    from models.linear import prefers_onednn
    from models.native.library import described

    on_cuda = device.startswith("cuda")
    hardware = {
        "cpu": cpu_name(),
        "cores": available_cores(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if on_cuda else cpu_name(),
        "dtype": dtype,
        "threads": threads,
        "torch": torch.__version__,
    }
    if on_cuda:
        hardware["cuda"] = torch.version.cuda
        hardware["device_memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    products = "cuBLAS" if on_cuda else "oneDNN" if prefers_onednn() else "PyTorch's default"
    rounding: dict[str, Any] = {
        name: hardware[name] for name in ("device_name", "dtype", "torch", "cuda") if name in hardware
    }
    kernels = None if on_cuda else described()
    if not on_cuda:
        instructions = torch.backends.cpu.get_cpu_capability()
        rounding |= {
            "instructions": instructions,
            "generation": _generation(),
            "products": products,
            "kernels": kernels,
        }
    return {
        **hardware,
        "fingerprint": _digest(hardware),
        "arithmetic": _digest(rounding),
        "matrix_products": products,
        "kernels": kernels,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _generation() -> list[str]:
    """Return the processor's family and model, which its name may not tell; none where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return sorted({line for line in lines if re.match(r"(cpu family|model)\s*:", line)})


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
