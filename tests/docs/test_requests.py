"""The further requests of the tutorial get the responses that its table names."""

import asyncio
import os
import re
import shutil

import asyncpg
import httpx
import pytest

from tests import ROOT
from tests.conftest import Running
from tests.support import api
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

TUTORIAL = (ROOT / "docs" / "get-started" / "one-task-with-curl.md").read_text()
REQUESTS = re.findall(r"^\| .+ \| `(curl .+)` \| (\d{3}) \|$", TUTORIAL, re.MULTILINE)
URL = "http://127.0.0.1:8000"


async def test_the_tutorial_has_a_table_of_requests() -> None:
    assert len(REQUESTS) == 14


@pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")
@pytest.mark.parametrize(("request_line", "status"), REQUESTS)
async def test_each_request_in_the_table_gets_the_status_in_its_row(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, request_line: str, status: str
) -> None:
    started = "cancel" in request_line or "released" in request_line
    pair = await (api.add_running_work if started else api.add_assigned_work)(
        http, "job-2", "counter", max_attempts=1
    )
    if request_line.endswith("/accept"):
        await api.expire_deadline(sql, pair.work)
        await api.wait_for_state(http, "/v1/tasks/job-2", "available")
        assert (await api.complete(http, pair.work)).status_code == 409
    elif request_line.endswith("/retry"):
        await api.complete_work(http, pair.work, "failed")
    shell = await asyncio.create_subprocess_shell(
        request_line.replace(URL, broker.url) + " -w '\n%{http_code}'",
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"WORK": pair.work},
    )
    body, _, received = (await shell.communicate())[0].decode().rpartition("\n")
    assert received == status, body
