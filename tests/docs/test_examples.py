"""The programs in examples/ do what they say."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator

import pytest

from tests import ROOT
from tests.conftest import Running
from tests.support import api
from tests.support.processes import clean_environment, kill_group

CURL = ROOT / "examples" / "curl"


@contextlib.asynccontextmanager
async def script(name: str, *arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        CURL / name,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env=clean_environment(**environment),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            kill_group(process.pid)
        await process.communicate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
async def test_curl_alone_is_a_tool_a_submitter_and_an_assigner(broker: Running) -> None:
    here = {"BROKER_URL": broker.url}
    async with (
        asyncio.timeout(60),
        script("tool.sh", "counter", **here),
        script("assign.sh", "counter", '{"can":"count"}', **here),
        script("submit.sh", "three small words", TASK_ID="first", **here) as first,
        script("submit.sh", "one more text", TASK_ID="second", **here) as second,
    ):
        for submitter, words in ((first, 3), (second, 3)):
            printed, _ = await submitter.communicate()
            task = json.loads(printed)
            assert (submitter.returncode, task["state"], task["result"]) == (0, "succeeded", {"words": words})
    record = (await api.get_records(broker.client, "first"))[0]
    assert record["tool_id"] == "counter"
    assert [report["message"] for report in record["reports"]] == ["counting"]
