"""While no keys exist, programs on this machine have full access, and all other requests are refused."""

import httpx
import pytest

from tests.conftest import Running
from tests.support.api import assert_problem, get
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

HOSTILE: list[dict[str, str]] = [
    {"Origin": "http://elsewhere.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Host": "elsewhere.example"},
    {"Host": "elsewhere.example:8000", "Origin": "http://elsewhere.example:8000"},
    {"Host": "127.0.0.1.elsewhere.example"},
    {"Host": "192.0.2.7:8000"},
]


async def assert_refused(broker: Running, headers: dict[str, str], request: str) -> None:
    method, path = request.split()
    body = {"needs": 1} if method == "POST" else None
    refused = await broker.client.request(method, path, json=body, headers=headers)
    assert "broker keys create" in assert_problem(refused, 403, "forbidden")["detail"]


@pytest.mark.parametrize("headers", HOSTILE, ids=str)
@pytest.mark.parametrize("plain_request", ["POST /v1/tasks", "GET /v1/tools", "GET /metrics"])
async def test_without_keys_web_pages_of_other_origins_are_refused(
    broker: Running, headers: dict[str, str], plain_request: str
) -> None:
    await assert_refused(broker, headers, plain_request)


FROM_OTHER_MACHINES: list[dict[str, str]] = [
    {"X-Forwarded-For": "192.0.2.7"},
    {"X-Forwarded-For": "127.0.0.1, 192.0.2.7"},
    {"X-Forwarded-For": "unknown"},
    {"X-Real-IP": "2001:db8::1"},
    {"Forwarded": "for=192.0.2.7;proto=http"},
]


@pytest.mark.parametrize("headers", FROM_OTHER_MACHINES, ids=str)
@pytest.mark.parametrize("plain_request", ["POST /v1/tasks", "GET /v1/tools"])
async def test_without_keys_requests_that_a_proxy_forwards_for_other_machines_are_refused(
    broker: Running, headers: dict[str, str], plain_request: str
) -> None:
    await assert_refused(broker, headers, plain_request)


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "127.0.0.1, ::1"}, {"X-Real-IP": "127.0.0.1"}, {"Forwarded": 'for="[::1]:5"'}],
)
async def test_without_keys_a_proxy_may_forward_requests_of_this_machine(
    broker: Running, headers: dict[str, str]
) -> None:
    assert (await broker.client.get("/v1/tools", headers=headers)).status_code == 200


async def test_without_keys_the_pages_of_the_service_have_access(broker: Running) -> None:
    port = httpx.URL(broker.url).port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert (await broker.client.get("/v1/tools", headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", HOSTILE + FROM_OTHER_MACHINES, ids=str)
async def test_only_this_machine_can_create_the_first_key(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    body = {"name": "me", "roles": ["admin"]}
    assert_problem(await http.post("/v1/keys", json=body, headers=headers), 403, "forbidden")
    assert (await get(http, "/v1/keys"))["items"] == []
