"""Common to all tests: fixed random numbers, no network, and the real data where it lies beside the checkout."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # tensors in tests are small: more threads only wait for each other


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches out of this machine fails here, and not only where there is no network."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        local = not isinstance(address, tuple) or address[0] in ("localhost", "127.0.0.1", "::1")
        assert local, f"a test tried to reach {address[0]}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data in ../shared/data beside the checkout")
    return folder
