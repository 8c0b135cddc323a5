"""The README is short, and its programs do what it says."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.conftest import Running
from tests.support import markdown

README = (ROOT / "README.md").read_text()


def test_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


async def test_newcomer_has_a_result_by_following_the_readme(broker: Running, tmp_path: Path) -> None:
    await markdown.run(markdown.section(README, "In five minutes"), tmp_path, broker.url)


async def test_python_programs_of_the_readme_work_together(broker: Running) -> None:
    blocks = markdown.blocks(markdown.section(README, "From Python"))
    tool, assigner, submitter = (block.code for block in blocks if block.kind == "python")
    environment = {**os.environ, "BROKER_URL": broker.url}
    running = [await _start(code, environment) for code in (tool, assigner)]
    try:
        process = await _start(submitter, environment, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            printed = (await process.communicate())[0].decode()
    finally:
        for program in running:
            program.terminate()
        statuses = [await program.wait() for program in running]
    assert printed == "{'words': 3}\n"
    assert statuses == [0, 0], "a program that gets SIGTERM ends without an error"


async def _start(code: str, environment: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment, **options)


def test_every_figure_of_the_readme_is_one_of_the_performance_page() -> None:
    performance = (ROOT / "docs" / "performance.md").read_text()
    figures = re.findall(r"\| ([\d,.]+) (?:tasks/s|ms) \|$", README, re.MULTILINE)
    assert len(figures) == 4
    assert [figure for figure in figures if figure not in performance] == []
