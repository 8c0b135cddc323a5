"""Run nginx with the configuration of containers/nginx on this machine, with other addresses and folders."""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import psutil

from tests import ROOT
from tests.support.engines import find_program
from tests.support.processes import free_port

PROGRAM = find_program("nginx") or "nginx"
CONFIGURATION = ROOT / "containers" / "nginx" / "nginx.conf"
_PATIENCE_SECONDS = 30


def configuration(folder: Path, *, port: int, brokers: list[str]) -> Path:
    """Write a configuration file for nginx.

    Args:
        folder: The folder for the configuration, the pid file, the log and temporary files.
        port: The port to listen on.
        brokers: `host:port` of each broker.

    Returns:
        The path of the configuration file.
    """
    text = CONFIGURATION.read_text()
    servers = re.findall(r"^ +server (\S+) resolve (.+);\n", text, re.MULTILINE)
    assert len(servers) == len(brokers), "the configuration has another number of brokers"
    for (name, options), broker in zip(servers, brokers, strict=True):
        # `resolve` needs a name server, which this machine may not have.
        text = text.replace(f"server {name} resolve {options};", f"server {broker} {options};")
    text, listens = re.subn(r"^( +listen) 8080 ", rf"\1 127.0.0.1:{port} ", text, flags=re.MULTILINE)
    assert listens == 1
    file = folder / "nginx.conf"
    file.write_text(text.replace("/tmp/", f"{folder}/").replace("/dev/stdout", str(folder / "access.log")))
    return file


class Nginx:
    """An nginx in front of the brokers.

    Args:
        folder: The folder for logs and temporary files.
        brokers: `host:port` of each broker.
    """

    def __init__(self, folder: Path, brokers: list[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._file = configuration(folder, port=port, brokers=brokers)
        self._log = folder / "nginx.log"
        self._process: asyncio.subprocess.Process | None = None

    def leave_out(self, setting: str) -> None:
        """Remove a setting from the configuration, so nginx uses its default from the next start on."""
        text, settings = re.subn(rf"^ +{setting} .+;\n", "", self._file.read_text(), flags=re.MULTILINE)
        assert settings == 1
        self._file.write_text(text)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run nginx until the end of the block."""
        # If nginx starts as root, its workers change to another user, which cannot read the folder.
        user = " user root;" if os.geteuid() == 0 else ""
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM, "-c", str(self._file), "-g", f"daemon off;{user}", stdout=log, stderr=log
            )
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS), httpx.AsyncClient() as http:
                while not await _listens(http, self.url):
                    await asyncio.sleep(0.02)
            yield
        finally:
            self._process.terminate()
            await self._process.wait()

    async def reload(self) -> None:
        """Start new workers. The old ones continue until their requests have ended."""
        assert self._process is not None
        master = psutil.Process(self._process.pid)
        old = {worker.pid for worker in master.children()}
        self._process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while old >= {worker.pid for worker in master.children()}:
                await asyncio.sleep(0.05)


async def _listens(http: httpx.AsyncClient, url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        await http.get(f"{url}/health/live")
        return True
    return False
