"""Common to all tests: fixed random numbers, no network, and the real data where it lies beside the checkout."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# a shell's background job ignores Ctrl-C, and so would every command that a test starts and interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tensors in tests are small: more threads only wait for each other


SLOW = ("test_site", "test_study_faults", "test_study_edges", "test_resume", "test_docs", "test_compare", "test_mirror")
"""Files of few tests and many minutes, the longest first: begun last, one would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers a file is one worker's: the order of the files is the order in which they begin."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


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
