"""Pages whose code runs: each block of a Markdown page, from the first to the last, in a folder of its own.

What a block is for stands before it, where a browser does not show it:

    <!-- file: count.sh -->     it is saved under this name; one that begins with `#!` may be run
    <!-- background -->            it runs until the page ends, beside the blocks that follow
    <!-- background, 2 tools -->   the same, and they begin when there are so many tools
    <!-- fails -->              it ends with another status than 0
    <!-- syntax only -->           it takes what a test has not, say a container engine; its syntax is seen

`sh` and `python` are run; of `console` each command is run, and what it prints compared, where `…` stands for
anything. Of `json` it is seen that it is JSON. A block of another kind needs to be a file.
"""

import asyncio
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx

from tests.support.processes import clean_environment, kill_group

_BLOCK = re.compile(
    r"^(?:<!-- (?P<says>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_COMMAND = re.compile(r"^\$ (?P<command>(?:.*\\\n)*.+)\n(?P<prints>(?:(?!\$ ).*\n)*)", re.MULTILINE)
_LOCAL = "http://127.0.0.1:8000"
_SECONDS = 60


class Block(NamedTuple):
    """A block of code, and what it is for."""

    says: str
    kind: str
    code: str


def blocks(text: str) -> list[Block]:
    """The blocks of a page."""
    return [Block(*(found or "" for found in match.groups())) for match in _BLOCK.finditer(text)]


def section(text: str, title: str) -> str:
    """A section of a page, with what is below it."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no section {title}"
    return found[2]


async def run(text: str, folder: Path, url: str, **settings: str) -> None:
    """Run a page.

    Args:
        text: The page.
        folder: Where its files are and its programs run.
        url: The broker; it takes the place of the local one.
        settings: What is set in the environment beside that.
    """
    environment = clean_environment(BROKER_URL=url, HOME=str(folder), PYTHONUNBUFFERED="1", **settings)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    async with contextlib.AsyncExitStack() as going_on:
        environment["TMPDIR"] = going_on.enter_context(_temporary_folder())
        for block in blocks(text.replace(_LOCAL, url)):
            name = block.says.removeprefix("file: ")
            if block.kind == "json":
                json.loads(block.code)
            if name != block.says:
                _save(folder / name, block.code)
            elif block.says == "syntax only":
                await _run(["bash", "-n", "-c", block.code], folder, environment)
            elif block.kind == "console":
                for command, prints in _COMMAND.findall(block.code):
                    printed = await _run(["bash", "-c", command], folder, environment)
                    assert re.fullmatch(_pattern(prints), printed.rstrip()), f"{command}\nprinted\n{printed}"
            elif block.kind in ("sh", "python"):
                program = ["bash", "-euo", "pipefail", "-c"] if block.kind == "sh" else [sys.executable, "-c"]
                if block.says.startswith("background"):
                    await going_on.enter_async_context(_going_on([*program, block.code], folder, environment))
                    await _until_there_are(int("".join(re.findall(r"\d", block.says)) or 0), url)
                else:
                    await _run([*program, block.code], folder, environment, fails=block.says == "fails")
            else:
                assert block.kind in ("json", "mermaid"), f"a block of kind {block.kind!r} is not run"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """One for this page: tools of somebody who tries it meanwhile would be met in that of the machine."""
    with tempfile.TemporaryDirectory(prefix="broker-page-") as folder:
        Path(folder).chmod(0o1777)
        yield folder


async def _until_there_are(tools: int, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client, asyncio.timeout(_SECONDS):
        while len((await client.get("/v1/tools")).json()["items"]) < tools:
            await asyncio.sleep(0.05)


def _save(file: Path, code: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code)
    if code.startswith("#!"):
        file.chmod(0o755)


def _pattern(prints: str) -> str:
    return r".*?".join(re.escape(part) for part in prints.rstrip().split("…")).replace(r"\ ", " ")


async def _run(command: list[str], folder: Path, environment: dict[str, str], *, fails: bool = False) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(_SECONDS):
            printed, _ = await process.communicate()
    except TimeoutError:
        kill_group(process.pid)
        raise AssertionError(f"it goes on and on: {command[-1]}") from None
    assert (process.returncode != 0) is fails, f"status {process.returncode}: {command[-1]}"
    return printed.decode()


@contextlib.asynccontextmanager
async def _going_on(command: list[str], folder: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=environment, start_new_session=True
    )
    try:
        yield
        assert process.returncode is None, f"it has ended: {command[-1]}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            kill_group(process.pid)
        await process.wait()


def broken_links(page: Path) -> list[str]:
    """The links to files and headings that are not there."""
    broken = []
    for link in re.findall(r"\]\((?!https?:|<)([^)]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in _headings(target.read_text())):
            broken.append(link)
    return broken


def _headings(text: str) -> set[str]:
    """The headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
