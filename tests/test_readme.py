"""What the README shows is true: its calls are made, its answers compared, its programs run."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running

README = (Path(__file__).parents[1] / "README.md").read_text()

CALLS = re.findall(r"```console\n\$ (.+)\n(.+)\n```", README)
PROGRAMS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
URL = "http://127.0.0.1:8000"

# What differs from one time to the next.
VARYING = [
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
    (r'"token": ?"[^"]+"', '"token": "TOKEN"'),
    (r'"cursor": ?"[^"]+"', '"cursor": "CURSOR"'),
]


def alike(answer: str) -> Any:
    for pattern, name in VARYING:
        answer = re.sub(pattern, name, answer)
    return json.loads(answer)


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
async def test_the_eight_calls_are_answered_as_the_readme_says(broker: Running) -> None:
    assert len(CALLS) == 8
    environment = dict(os.environ)
    for call, promised in CALLS:
        shell = await asyncio.create_subprocess_shell(
            call.replace(URL, broker.url), stdout=asyncio.subprocess.PIPE, env=environment
        )
        answer = (await shell.communicate())[0].decode()
        assert alike(answer) == alike(promised), call
        if "/v1/work " in call:
            environment["WORK"] = json.loads(answer)["id"]


async def test_the_programs_do_what_the_readme_says(broker: Running) -> None:
    tool, assigner, submitter = PROGRAMS
    environment = {**os.environ, "BROKER_URL": broker.url}
    running = [await _program(code, environment) for code in (tool, assigner)]
    try:
        process = await _program(submitter, environment, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            printed = (await process.communicate())[0].decode()
    finally:
        for program in running:
            program.terminate()
        statuses = [await program.wait() for program in running]
    assert printed == "{'words': 3}\n"
    assert statuses == [0, 0], "a program that is told to stop ends in order"


async def _program(code: str, environment: dict[str, str], **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environment, **options)


def test_every_setting_of_the_readme_exists() -> None:
    from broker.settings import Settings, variable_of

    known = {variable_of(name) for name in Settings.__struct_fields__} | {"BROKER_URL"}
    named = set(re.findall(r"`(BROKER_\w+)`", README)) - {"BROKER_TEST_DATABASE_URL"}
    assert named <= known


def test_every_folder_of_the_readme_exists() -> None:
    root = Path(__file__).parents[1]
    folders = re.findall(r"^\| `([a-z/]+/)` \|", README, re.MULTILINE)
    assert folders
    assert [folder for folder in folders if not (root / folder).is_dir()] == []
