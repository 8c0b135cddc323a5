"""PgBouncer in transaction mode, in front of the PostgreSQL of the tests."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Self
from urllib.parse import urlsplit

from sqlalchemy import make_url

from tests import ROOT
from tests.support.engines import find_program
from tests.support.processes import free_port

CONFIGURATION = ROOT / "containers" / "pgbouncer" / "pgbouncer.ini"


class Pooler:
    """A PgBouncer process that runs until the end of the `with` block.

    Args:
        url: The URL of the PostgreSQL server behind it. All its databases are reachable.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        host = self._url.query.get("host", self._url.host)
        self._host = host if isinstance(host, str) else host[0]
        self._port = self._url.port or int(str(self._url.query.get("port", 5432)))
        self._folder = Path(tempfile.mkdtemp(prefix="broker-pooler-"))
        self.port = free_port()

    def pooled_url(self, url: str) -> str:
        """Return the URL of a database through the pooler."""
        database = urlsplit(url).path.lstrip("/")
        return f"postgresql://{self._url.username}@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        target = f"host={self._host} port={self._port} user={self._url.username}"
        if self._url.password:
            target += f" password={self._url.password}"
        file = self._folder / "pgbouncer.ini"
        file.write_text(self._configuration(target))
        self._folder.chmod(0o755)
        file.chmod(0o644)
        # PgBouncer refuses to run as root, and only the owner of PostgreSQL's socket can connect to it.
        postgres_socket = Path(self._host) / f".s.PGSQL.{self._port}"
        owner = postgres_socket.stat().st_uid if postgres_socket.exists() else 65534
        self._process = subprocess.Popen(
            [str(find_program("pgbouncer")), file],
            user=owner if os.geteuid() == 0 else None,
            stderr=subprocess.DEVNULL,
        )
        self._wait_until_it_listens()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        rmtree(self._folder)

    def _configuration(self, target: str) -> str:
        """Return the shipped configuration with other addresses, and without authentication."""
        replacements = {
            "broker": ("*", target),
            "listen_addr": ("listen_addr", "127.0.0.1"),
            "listen_port": ("listen_port", self.port),
            "auth_type": ("auth_type", "any"),
            "auth_file": ("auth_file", ""),
            # Fewer connections than the broker has, so that transactions move between them.
            "default_pool_size": ("default_pool_size", 3),
        }
        lines = []
        for line in CONFIGURATION.read_text().splitlines():
            name = line.partition("=")[0].strip()
            if name in replacements:
                other, value = replacements.pop(name)
                line = f"{other} = {value}"  # noqa: PLW2901
            lines.append(line)
        assert not replacements, f"{CONFIGURATION} does not set {replacements.keys()}"
        return "\n".join(lines) + "\n"

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, "PgBouncer has exited"
                assert time.monotonic() < deadline, "PgBouncer does not listen"
                time.sleep(0.01)
            else:
                return
