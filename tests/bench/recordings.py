"""Recordings to test with: tones, noise, and the bytes of files that hold them."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile


def tone(hz: float, seconds: float, rate: int = 16_000, amplitude: float = 0.5) -> npt.NDArray[np.float32]:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(samples: int, seed: int, amplitude: float = 0.1) -> npt.NDArray[np.float32]:
    return (amplitude * np.random.default_rng(seed).uniform(-1, 1, samples)).astype(np.float32)


def encode(samples: Any, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """Return the bytes of a file that holds `samples`, [samples] or [samples, channels]."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
