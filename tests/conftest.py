"""Every test runs with one thread, fixed seeds, empty stores of its own, and no network."""

import random
import socket
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

# Examples are derived from the test itself, so a failure is the same on every machine, however slow.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep a test, and the processes it starts, away from the user's data, artifacts and screen."""
    home: Path = tmp_path_factory.mktemp("natbench")
    monkeypatch.setenv("NATBENCH_STORE", str(home / "store"))
    monkeypatch.setenv("NATBENCH_DATA", str(home / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Seed the global generators, which dropout and parameter initialisation draw from."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attempt to leave the machine fail as it does on one without a network."""
    lookup = socket.getaddrinfo

    def local_only(host: object, *args: object, **kwargs: object) -> object:
        if host not in (None, "", "localhost", "127.0.0.1", "::1"):
            raise socket.gaierror(socket.EAI_AGAIN, f"tests have no network, and {host} was asked for")
        return lookup(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
