"""A large request body does not delay other requests, which a probe sends meanwhile.

These tests measure times, so no other test may run beside them. Only `make stall` runs them.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from broker.settings import Settings
from tests.support import stall
from tests.support.processes import serving, wait_until_ready
from tests.support.shared import shared_database

pytestmark = pytest.mark.asyncio(loop_scope="module")
database = shared_database

SIZE = Settings().max_body_bytes
SLOWEST_SECONDS = 0.25
IDLE_SECONDS = 2
# Other programs may also delay the probe. An effect of the body occurs every time.
TRIES = 3
# Each shape exercises another part of the code, and little of the database.
SHAPES = (
    "ones beside a UUID with an exponent",
    "large numbers",
    "text of four bytes a character",
    "arrays too deep",
    "an array that does not end",
    "a lone surrogate behind quotes",
    "a zero at the end",
    "unknown arrays",
)
ENDPOINTS = stall.endpoints()
SUBMIT = next(endpoint for endpoint in ENDPOINTS if str(endpoint) == "POST /v1/tasks")
SUBMIT_MANY = next(endpoint for endpoint in ENDPOINTS if str(endpoint) == "POST /v1/tasks/batch")


class Broker(NamedTuple):
    """A client and a probe of a broker in another process, and the delay of the probe without load."""

    sender: stall.Sender
    probe: stall.Probe
    idle_seconds: float


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def broker(database: str) -> Any:
    with serving(BROKER_DATABASE_URL=database) as (_, url):
        await wait_until_ready(url)
        with closing(stall.Sender(url)) as sender, stall.running_probe(url) as probe:
            began = time.monotonic()
            await asyncio.sleep(IDLE_SECONDS)
            yield Broker(sender, probe, probe.slowest(began).waited)


async def test_every_endpoint_has_forty_shapes_of_bodies() -> None:
    assert len(stall.SHAPES) >= 40
    for endpoint in ENDPOINTS:
        sizes = {shape: len(stall.body(endpoint, shape, 2**20)) for shape in stall.SHAPES}
        assert set(sizes.values()) == {2**20}, endpoint


@pytest.mark.alone
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=str)
async def test_large_body_at_any_endpoint_does_not_delay_other_requests(
    broker: Broker, endpoint: stall.Endpoint
) -> None:
    assert_no_delay(broker, endpoint, "many unknown members")


@pytest.mark.alone
@pytest.mark.parametrize("shape", SHAPES)
async def test_large_task_does_not_delay_other_requests(broker: Broker, shape: str) -> None:
    assert_no_delay(broker, SUBMIT, shape)


@pytest.mark.alone
@pytest.mark.parametrize("shape", stall.ITEMS)
async def test_large_batch_does_not_delay_other_requests(broker: Broker, shape: str) -> None:
    assert_no_delay(broker, SUBMIT_MANY, shape)


def combinations() -> Iterator[Any]:
    for endpoint in ENDPOINTS:
        for shape in stall.SHAPES:
            yield pytest.param(endpoint, shape, id=f"{endpoint}, {shape}")


@pytest.mark.alone
@pytest.mark.thorough
@pytest.mark.parametrize(("endpoint", "shape"), [*combinations()])
async def test_no_shape_of_a_large_body_delays_other_requests_at_any_endpoint(
    broker: Broker, endpoint: stall.Endpoint, shape: str
) -> None:
    assert_no_delay(broker, endpoint, shape)


def assert_no_delay(broker: Broker, endpoint: stall.Endpoint, shape: str) -> None:
    """Send a body, and check that the requests of the probe were not delayed."""
    content = stall.body(endpoint, shape, SIZE)
    slowest = []
    for _ in range(TRIES):
        began = time.monotonic()
        broker.sender.send(endpoint, content)
        slowest.append(broker.probe.slowest(began))
        if slowest[-1].waited < SLOWEST_SECONDS + 2 * broker.idle_seconds:
            return
    pytest.fail(f"{endpoint}, {shape}: {slowest}; idle: {broker.idle_seconds:.3f} s")
