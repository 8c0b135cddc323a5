"""The nginx of containers/, on this machine: only addresses and folders are others."""

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
    """A configuration to start nginx with.

    Args:
        folder: For its pid, its log and what it puts aside.
        port: Where it listens.
        brokers: `host:port` of each broker.

    Returns:
        The file.
    """
    text = CONFIGURATION.read_text()
    servers = re.findall(r"^ +server (\S+) resolve (.+);\n", text, re.MULTILINE)
    assert len(servers) == len(brokers), "each broker takes the place of one"
    for (name, options), broker in zip(servers, brokers, strict=True):
        # `resolve` is for names, and needs a name server that is not here.
        text = text.replace(f"server {name} resolve {options};", f"server {broker} {options};")
    text, listens = re.subn(r"^( +listen) 8080 ", rf"\1 127.0.0.1:{port} ", text, flags=re.MULTILINE)
    assert listens == 1
    file = folder / "nginx.conf"
    file.write_text(text.replace("/tmp/", f"{folder}/").replace("/dev/stdout", str(folder / "access.log")))
    return file


class Nginx:
    """The nginx before the brokers.

    Args:
        folder: For its logs, and what it puts aside.
        brokers: `host:port` of each broker.
    """

    def __init__(self, folder: Path, brokers: list[str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._file = configuration(folder, port=port, brokers=brokers)
        self._log = folder / "nginx.log"
        self._process: asyncio.subprocess.Process | None = None

    def leave_out(self, setting: str) -> None:
        """Use nginx's default for a setting, from the next start on."""
        text, settings = re.subn(rf"^ +{setting} .+;\n", "", self._file.read_text(), flags=re.MULTILINE)
        assert settings == 1
        self._file.write_text(text)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """It runs for as long as the block lasts."""
        # As root its workers would be another user, who may not enter a folder of ours.
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
        """Have new workers take over; the old ones stay for as long as somebody waits with them."""
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
