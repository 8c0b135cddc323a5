"""Query plans: the cost of a set is linear in its rows, even if the statistics are from an empty queue."""

import json
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from msgspec import Raw
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

from broker.schemas.candidates import Pair
from broker.store import Store, assignment, completion, locks, submission
from tests.support import steps

MANY = 1_000
IDS = [f"x{number}" for number in range(MANY)]


@pytest.fixture
async def emptied_queue(store: Store, sql: asyncpg.Connection) -> Store:
    """Return a store whose queue was analyzed when it was empty, and then filled."""
    await steps.register(store, "t", capacity=MANY)
    for number in range(30):
        made = await steps.add_assigned_work(store, f"w{number}", "t")
        await steps.complete(store, made.id)
    await sql.execute("analyze")
    await store.many(submission.submit, [steps.new_task(id_) for id_ in IDS])
    return store


async def test_submitting_a_set_has_linear_cost(emptied_queue: Store) -> None:
    values: dict[str, Any] = {
        "id": [f"y{number}" for number in range(MANY)],
        "needs": ["1"] * MANY,
        "payload": ["null"] * MANY,
        "priority": [0] * MANY,
        "not_before": [None] * MANY,
        "timeout_seconds": [None] * MANY,
        "max_attempts": [3] * MANY,
        "retry_backoff_seconds": [1.0] * MANY,
        "created_by": [None] * MANY,
        "trace_context": [None] * MANY,
    }
    assert await discarded_rows(emptied_queue, submission.SUBMIT, values) < MANY


async def test_assigning_a_set_has_linear_cost(emptied_queue: Store) -> None:
    values = {"task_ids": IDS, "tool_ids": ["t"] * MANY}
    assert await discarded_rows(emptied_queue, assignment.ASSIGN, values) < MANY


async def test_assigning_a_set_that_tools_wait_for_has_linear_cost(emptied_queue: Store) -> None:
    values = {"task_ids": IDS, "tool_ids": ["t"] * MANY, "waiting": ["t"]}
    assert await discarded_rows(emptied_queue, assignment.ASSIGN_TO_WAITING, values) < MANY


async def test_ending_a_set_has_linear_cost(emptied_queue: Store) -> None:
    pairs = [Pair(task_id=id_, tool_id="t") for id_ in IDS]
    works = [assigned.work for assigned in await emptied_queue.many(assignment.assign, pairs)]
    values: dict[str, Any] = {
        "work_id": [work.id for work in works if work],
        "outcome": ["succeeded"] * MANY,
        "result": ["1"] * MANY,
        "error": [None] * MANY,
        "retry": [True] * MANY,
        "token_tool": None,
        "token_hash": None,
    }
    ids = {"ids": values["work_id"], "task_ids": [], "tool_ids": []}
    assert await discarded_rows(emptied_queue, locks.LOCK, ids) < MANY
    assert await discarded_rows(emptied_queue, completion.END, values) < MANY


async def discarded_rows(store: Store, statement: TextClause, values: dict[str, Any]) -> int:
    """Return how many rows, and pairs of rows, a statement reads and discards. Roll its changes back."""
    async with AsyncSession(steps.in_transaction(store)) as session:
        explained = text(f"explain (analyze, format json) {statement.text}")
        [plan] = (await session.execute(explained, values)).scalars()
        await session.rollback()
    return sum(_removed(json.loads(bytes(plan) if isinstance(plan, Raw) else plan)))


def _removed(node: Any) -> Iterator[int]:
    if isinstance(node, list):
        for each in node:
            yield from _removed(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key.startswith("Rows Removed by"):
                yield value * node.get("Actual Loops", 1)
            else:
                yield from _removed(value)
