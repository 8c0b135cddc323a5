"""Run the code blocks of a Markdown page, from the first to the last, in a folder of their own.

A comment before a block, which browsers do not show, says how to treat it:

    <!-- file: count.sh -->         save it under this name; make it executable if it begins with `#!`
    <!-- background -->             run it until the page ends, beside the blocks that follow
    <!-- background, 2 tools -->    the same, and wait until this many tools are registered
    <!-- fails -->                  expect an exit status other than 0
    <!-- output -->                 compare it with the output of the block before; `…` matches anything
    <!-- syntax only -->            only check the syntax, as the block needs something that tests do not have

`sh` and `python` blocks are run. A `json` block must be valid JSON, and a `text` block is only shown. Any
other block must be a file.
"""

import ast
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
    r"^(?:<!-- (?P<directive>[^>]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_LOCAL = "http://127.0.0.1:8000"
_SECONDS = 60


class Block(NamedTuple):
    """A block of code, and the directive that says how to treat it."""

    directive: str
    kind: str
    code: str


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page."""
    return [Block(*(group or "" for group in match.groups())) for match in _BLOCK.finditer(text)]


def section(text: str, title: str) -> str:
    """Return a section of a page, with its subsections."""
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"there is no section {title}"
    return match[2]


async def run(text: str, folder: Path, url: str, **settings: str) -> None:
    """Run a page.

    Args:
        text: The page.
        folder: The working directory of its programs.
        url: The URL of a broker, which replaces the local one.
        settings: Further environment variables.
    """
    environment = clean_environment(BROKER_URL=url, HOME=str(folder), PYTHONUNBUFFERED="1", **settings)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    async with contextlib.AsyncExitStack() as running:
        environment["TMPDIR"] = running.enter_context(_temporary_folder())
        printed = ""
        for block in blocks(text.replace(_LOCAL, url)):
            name = block.directive.removeprefix("file: ")
            if block.kind == "json":
                json.loads(block.code)
            if name != block.directive:
                _save(folder / name, block.code)
            elif block.directive == "syntax only" and block.kind == "python":
                compile(block.code, "a page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            elif block.directive == "syntax only":
                await _run(["bash", "-n", "-c", block.code], folder, environment)
            elif block.directive == "output":
                assert re.fullmatch(_pattern(block.code), printed.rstrip()), f"printed\n{printed}"
            elif block.kind in ("sh", "python"):
                program = ["bash", "-euo", "pipefail", "-c"] if block.kind == "sh" else [sys.executable, "-c"]
                if block.directive.startswith("background"):
                    await running.enter_async_context(
                        _background([*program, block.code], folder, environment)
                    )
                    await _wait_for_tools(int("".join(re.findall(r"\d", block.directive)) or 0), url)
                else:
                    fails = block.directive == "fails"
                    printed = await _run([*program, block.code], folder, environment, fails=fails)
            else:
                assert block.kind in ("json", "text"), f"a block of kind {block.kind!r} is not run"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    """Create a folder for temporary files, so that the programs of a page do not use the files of others."""
    with tempfile.TemporaryDirectory(prefix="broker-page-") as folder:
        Path(folder).chmod(0o1777)
        yield folder


async def _wait_for_tools(tools: int, url: str) -> None:
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
        raise AssertionError(f"it does not end: {command[-1]}") from None
    assert (process.returncode != 0) is fails, f"status {process.returncode}: {command[-1]}"
    return printed.decode()


@contextlib.asynccontextmanager
async def _background(command: list[str], folder: Path, environment: dict[str, str]) -> AsyncIterator[None]:
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
    """Return the links that lead to no file or to no heading."""
    broken = []
    for link in re.findall(r"\]\((?!https?:|<)([^)]+)\)", page.read_text()):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (heading and heading not in _headings(target.read_text())):
            broken.append(link)
    return broken


def _headings(text: str) -> set[str]:
    """Return the names of the headings of a page, as links use them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
