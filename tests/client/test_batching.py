"""Requests with many items: an invalid item fails alone, and no item waits longer than necessary."""

import asyncio
import pickle
from collections.abc import Sequence

import pytest
from msgspec import Raw

from broker.client import ProblemError
from broker.client.batching import Batcher
from broker.schemas.problems import Problem


def refused(status: int) -> ProblemError:
    return ProblemError(
        Problem(type="t", title="t", status=status, detail="d", instance="/", code="validation_failed")
    )


async def test_items_that_arrive_during_a_request_share_the_next_one() -> None:
    calls: list[int] = []
    go_on = asyncio.Event()

    async def call(items: list[Raw], _: object) -> Sequence[bytes]:
        calls.append(len(items))
        await go_on.wait()
        return [bytes(item) for item in items]

    batcher = Batcher(call)
    putting = [asyncio.create_task(batcher.put(Raw(b"%d" % n))) for n in range(3)]
    while not calls:
        await asyncio.sleep(0)
    putting += [asyncio.create_task(batcher.put(Raw(b"%d" % n))) for n in range(3, 6)]
    await asyncio.sleep(0)
    putting[4].cancel()
    await asyncio.sleep(0)
    go_on.set()
    results = await asyncio.gather(*putting, return_exceptions=True)
    assert [result for result in results if isinstance(result, bytes)] == [b"0", b"1", b"2", b"3", b"5"]
    assert calls == [3, 2]


async def test_one_invalid_item_among_a_thousand_is_isolated_with_few_requests() -> None:
    calls = 0

    async def call(items: list[Raw], _: object) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if any(bytes(item) == b"666" for item in items):
            raise refused(400)
        return [0] * len(items)

    batcher = Batcher(call)
    putting = [batcher.put(Raw(b"%d" % n)) for n in range(1000)]
    results = await asyncio.gather(*putting, return_exceptions=True)
    assert [n for n, result in enumerate(results) if result != 0] == [666]
    assert calls < 25


@pytest.mark.parametrize("error", [refused(401), refused(503), OSError("connection lost")])
async def test_an_error_that_concerns_all_items_is_raised_for_all_after_one_request(error: Exception) -> None:
    calls = 0

    async def call(items: list[Raw], _: object) -> Sequence[int]:
        nonlocal calls
        calls += 1
        raise error

    batcher = Batcher(call)
    results = await asyncio.gather(*(batcher.put(Raw(b"1")) for _ in range(9)), return_exceptions=True)
    assert (results, calls) == ([error] * 9, 1)


async def test_larger_items_share_smaller_requests() -> None:
    sizes: list[int] = []

    async def call(items: list[Raw], _: object) -> Sequence[int]:
        sizes.append(len(items))
        return [0] * len(items)

    batcher = Batcher(call)
    large = Raw(b"x" * 400_000)
    assert await asyncio.gather(*(batcher.put(large) for _ in range(6))) == [0] * 6
    assert sizes == [2, 2, 2]


def test_errors_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(refused(404)))
    assert (type(again), again.problem.status, str(again)) == (ProblemError, 404, "404 validation_failed: d")


async def test_items_that_arrive_before_a_request_is_due_join_it() -> None:
    sent: list[int] = []
    due = asyncio.Event()

    async def send(items: list[Raw], _: object) -> list[Raw]:
        sent.append(len(items))
        return items

    async def until_due() -> None:
        await due.wait()

    batcher = Batcher(send, until_due)
    first = asyncio.create_task(batcher.put(Raw(b"1")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(batcher.put(Raw(b"2")))
    await asyncio.sleep(0)
    due.set()
    assert [bytes(item) for item in await asyncio.gather(first, second)] == [b"1", b"2"]
    assert sent == [2]
    assert bytes(await batcher.put(Raw(b"3"))) == b"3"
