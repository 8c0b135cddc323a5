"""An assigner: looks at the available tasks and tools, and pairs them."""

import logging
from collections.abc import Callable
from typing import Any

from broker.client import running
from broker.client.connection import Connection, ProblemError
from broker.schemas import AssignedPair, AssignedPairs, Candidates, Pair, Task, Tool, plain

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
_BATCH = 1_000

Match = Callable[[Any, Any], bool]


def contains(skills: Any, needs: Any) -> bool:
    """Whether skills contain needs.

    An object contains another when it has all of its keys and contains each of their values; a list
    contains a value, or all values of a list, when one of its items contains it; else they have to be equal.
    """
    if isinstance(skills, dict) and isinstance(needs, dict):
        return all(key in skills and contains(skills[key], needs[key]) for key in needs)
    if isinstance(skills, list):
        wanted = needs if isinstance(needs, list) else [needs]
        return all(any(contains(skill, need) for skill in skills) for need in wanted)
    return bool(skills == needs)


class Assigner:
    """Pairs tasks with tools, as they become available.

    Args:
        match: Whether a tool with these skills can do a task with these needs: `match(skills, needs)`. What
            it raises is logged, and means no.
        on_assigned: Is told of every pair that has become work.
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
    """

    def __init__(
        self,
        match: Match = contains,
        *,
        on_assigned: Callable[[AssignedPair], object] | None = None,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        self._match = match
        self._on_assigned = on_assigned
        self._url = url
        self._key = key
        # In the order of the offer: higher priority first, then older first.
        self._tasks: dict[str, Task] = {}
        self._tools: dict[str, Tool] = {}
        self._cursor: str | None = None
        # The tasks of which it was told that they cannot be matched.
        self._told: set[str] = set()

    def run(self) -> None:
        """Pair until the process is told to stop (SIGTERM, Ctrl-C)."""
        running.run(self.assign())

    async def assign(self) -> None:
        """Pair until cancelled."""
        async with Connection(self._url, key=self._key) as connection:
            while True:
                await self._look(connection)
                while pairs := self._pairs():
                    await self._post(connection, pairs)

    async def _look(self, connection: Connection) -> None:
        """Wait for news, and take all of it in."""
        more, wait = True, _WAIT_SECONDS
        while more:
            query = {"wait": wait, "cursor": self._cursor}
            try:
                found = await connection.call("GET", "/v1/candidates", Candidates, query=query, wait=wait)
            except ProblemError as error:
                if error.code != "cursor_expired":
                    raise
                self._cursor, self._tasks, self._tools = None, {}, {}
                continue
            self._tasks.update((task.id, task) for task in found.tasks)
            self._tools.update((tool.id, tool) for tool in found.tools)
            self._cursor, more, wait = found.cursor, found.more, 0.0

    def _pairs(self) -> list[Pair]:
        """A batch of pairs, the best of what is known."""
        room = {tool.id: tool.capacity - tool.load for tool in self._tools.values()}
        skills = {tool.id: plain(tool.skills) for tool in self._tools.values()}
        pairs: list[Pair] = []
        for task in sorted(self._tasks.values(), key=lambda task: (-task.priority, task.created_at)):
            needs = plain(task.needs)
            tool_id = next(
                (id_ for id_, free in room.items() if free > 0 and self._matches(skills[id_], needs, task)),
                None,
            )
            if tool_id is not None:
                pairs.append(Pair(task_id=task.id, tool_id=tool_id))
                room[tool_id] -= 1
            if len(pairs) == _BATCH:
                break
        return pairs

    def _matches(self, skills: Any, needs: Any, task: Task) -> bool:
        """Whether they match; what cannot be judged does not, and holds up nothing else."""
        try:
            return self._match(skills, needs)
        except Exception as error:  # noqa: BLE001 - it is given whatever anybody submits
            if task.id not in self._told:
                log.warning("task %s cannot be matched: %r", task.id, error)
                self._told.add(task.id)
            return False

    async def _post(self, connection: Connection, pairs: list[Pair]) -> None:
        """Post pairs, and forget what is not available any more."""
        answer = await connection.call("POST", "/v1/work/batch", AssignedPairs, json={"items": pairs})
        for item in answer.items:
            if item.status.startswith("tool_"):
                self._tools.pop(item.tool_id, None)
                continue
            self._tasks.pop(item.task_id, None)
            self._told.discard(item.task_id)
            if item.status == "assigned" and self._on_assigned is not None:
                self._on_assigned(item)
            if item.status in ("assigned", "exists") and item.tool_id in self._tools:
                self._tools[item.tool_id].load += 1
