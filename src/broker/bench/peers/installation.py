"""Install peers, each in a folder of its own in the user's cache folder."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from broker.bench.peers.peer import Peer, PeerError
from broker.bench.peers.subprocesses import ended

_LIMIT_SECONDS = 300


async def install(peer: Peer, say: Callable[[str], None]) -> Path:
    """Return the folder of an installed peer. Install it first, if necessary.

    Args:
        peer: The peer.
        say: Shows a line of text.

    Raises:
        PeerError: The peer cannot be installed.
    """
    folder = installed_in(peer)
    if folder.exists():
        return folder
    say(f"Installing {peer.name} {peer.version} into {folder}. This happens only once.")
    # An interrupted installation leaves a folder of another name.
    part = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for command in _npm(peer, part) if peer.runs_on_node else _pip(peer, part):
            await _run(*command)
        part.rename(folder)
    except OSError as error:
        raise PeerError(f"It cannot be installed into {folder}: {error}") from error
    return folder


def installed_in(peer: Peer) -> Path:
    """Return the folder for a version of a peer, and for packages of Python a version of Python."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    python = "" if peer.runs_on_node else f"-python{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "broker" / "peers" / f"{peer.name.lower()}-{peer.version}{python}"


def reason(output: str) -> str:
    """Return the line of the output of pip or npm that says best why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    pip = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    npm = [line.removeprefix("npm error ") for line in lines if line.startswith("npm error ")]
    return (pip[-1:] or npm[:1] or lines[:1] or ["no output"])[0]


def _pip(peer: Peer, folder: Path) -> list[list[str]]:
    python = str(folder / "bin" / "python")
    # Wheels only, because to build a package would run its code.
    options = ("--quiet", "--no-input", "--only-binary=:all:", "--retries", "1", "--timeout", "30")
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [python, "-m", "pip", "install", *options, *peer.packages],
    ]


def _npm(peer: Peer, folder: Path) -> list[list[str]]:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise PeerError(f"{program} is not installed.")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1")
    return [["npm", "install", "--prefix", str(folder), *options, *peer.packages]]


async def _run(*command: str) -> None:
    program = f"python -m {command[2]}" if command[1] == "-m" else command[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        async with ended(process), asyncio.timeout(_LIMIT_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise PeerError(f"{program} did not end within {_LIMIT_SECONDS} seconds.") from error
    if process.returncode:
        raise PeerError(f"{program} failed: {reason(output.decode(errors='replace'))}")
