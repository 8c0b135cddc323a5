"""Every arrow of the diagram: a task can follow it. The model checks that no other transition exists."""

from collections.abc import Awaitable, Callable

import asyncpg
import httpx
import pytest

from tests.life_cycle.diagram import ARROWS, NOWHERE
from tests.support import api
from tests.support.api import add_assigned_work, add_task, assign, complete, get
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

LATER = "2100-01-01T00:00:00Z"


class Scene:
    """A task `a` whose first work was released and got a late result, with actions that change its state."""

    def __init__(self, http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
        self.http = http
        self.sql = sql
        self.late = ""
        self.work = ""

    async def prepare(self, state: str) -> None:
        """Bring the task into a state."""
        if state == NOWHERE:
            return
        pair = await add_assigned_work(self.http, retry_backoff_seconds=3600, max_attempts=9)
        self.late = pair.work
        await self.post(f"/v1/work/{pair.work}/cancel", requeue=True)
        await self.completes("released")
        assert (await complete(self.http, self.late)).status_code == 409
        if state == "available":
            return
        await self.is_assigned()
        if state == "running":
            await self.starts()
        elif state == "scheduled":
            await self.fails()
        elif state == "failed":
            await self.fails_permanently()

    async def post(self, path: str, **body: object) -> None:
        response = await self.http.post(path, json=body or None)
        assert response.is_success, response.text

    async def completes(self, outcome: str = "succeeded", **fields: object) -> None:
        work = self.work or self.late
        await self.post(f"/v1/work/{work}/complete", outcome=outcome, **fields)

    async def is_submitted(self) -> None:
        await add_task(self.http)

    async def is_submitted_for_later(self) -> None:
        await add_task(self.http, not_before=LATER)

    async def comes_due(self) -> None:
        await api.end_backoff(self.sql)
        await api.wait_for_state(self.http, "/v1/tasks/a", "available")

    async def is_assigned(self) -> None:
        self.work = (await assign(self.http))["id"]

    async def starts(self) -> None:
        await self.post(f"/v1/work/{self.work}/start")

    async def is_released(self) -> None:
        await self.completes("released")

    async def fails(self) -> None:
        await self.completes("failed")

    async def fails_permanently(self) -> None:
        await self.completes("failed", retry=False)

    async def is_deleted(self) -> None:
        assert (await self.http.delete("/v1/tasks/a?force=true")).status_code == 204

    async def is_retried(self) -> None:
        await self.post("/v1/tasks/a/retry")

    async def is_accepted(self) -> None:
        await self.post(f"/v1/archive/{self.late}/accept")


Action = Callable[[Scene], Awaitable[None]]

ACTIONS: dict[tuple[str, str], Action] = {
    (NOWHERE, "available"): Scene.is_submitted,
    (NOWHERE, "scheduled"): Scene.is_submitted_for_later,
    ("scheduled", "available"): Scene.comes_due,
    ("failed", "available"): Scene.is_retried,
    ("available", "assigned"): Scene.is_assigned,
    ("assigned", "running"): Scene.starts,
}
for state in ("scheduled", "available", "failed"):
    ACTIONS |= {(state, "cancelled"): Scene.is_deleted, (state, "succeeded"): Scene.is_accepted}
for state in ("assigned", "running"):
    ACTIONS |= {
        (state, "available"): Scene.is_released,
        (state, "scheduled"): Scene.fails,
        (state, "failed"): Scene.fails_permanently,
        (state, "succeeded"): Scene.completes,
        (state, "cancelled"): Scene.is_deleted,
    }


@pytest.mark.parametrize("arrow", sorted(ARROWS | ACTIONS.keys()), ids=" to ".join)
async def test_a_task_can_follow_each_arrow_of_the_diagram(
    http: httpx.AsyncClient, sql: asyncpg.Connection, arrow: tuple[str, str]
) -> None:
    assert arrow in ARROWS, "the diagram lacks this arrow"
    start, end = arrow
    scene = Scene(http, sql)
    await scene.prepare(start)
    if start != NOWHERE:
        assert (await get(http, "/v1/tasks/a"))["state"] == start
    await ACTIONS[arrow](scene)
    assert (await get(http, "/v1/tasks/a"))["state"] == end
