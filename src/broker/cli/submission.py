"""A submission: tasks that are sent batch by batch, and waited for."""

import asyncio
import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple, cast

import click
import httpx
import msgspec
from msgspec import UNSET, Raw, UnsetType

from broker.cli.screen import Screen, note, one_line, printable
from broker.cli.task_files import Given
from broker.client import AsyncBroker, AsyncHandle, ProblemError
from broker.client.errors import explained
from broker.schemas.tasks import Task

# As many as the client sends in a call.
_BATCH = 1_000
_MOST_IDS = 100
# As long as nobody wonders.
_SILENT_SECONDS = 10.0


class Outcome(msgspec.Struct, kw_only=True):
    """How a task ended, as it is printed."""

    id: str
    state: str
    result: Raw
    error: str | None
    file: str | UnsetType = UNSET


class _Sent(NamedTuple):
    """What is remembered of a task that was sent.

    Args:
        where: Where it came from, for people.
        file: The file that it is for, if it is.
        named: Whether it came with an id.
    """

    where: str
    file: str | None
    named: bool


class Submission:
    """Tasks that are submitted, and then waited for.

    Args:
        tasks: The tasks; they are gone through once.
        total: How many they are.
        screen: Where their ids, their results, and how far they are is told.
        wait: Whether they are waited for; else their ids are told.
    """

    def __init__(self, tasks: Iterable[Given], total: int, screen: Screen, *, wait: bool) -> None:
        self._tasks = iter(tasks)
        self._total = total
        self._screen = screen
        self._wait = wait
        self._broker: AsyncBroker | None = None
        self._done = self._existed = 0
        self._waiting: dict[str, tuple[AsyncHandle, _Sent]] = {}
        self._states: Counter[str] = Counter()

    async def submit(self, broker: AsyncBroker) -> None:
        """Submit them all.

        Raises:
            click.ClickException: The broker refuses one; the message says which.
        """
        self._broker = broker
        is_long = self._total > _BATCH
        with self._screen.bar("submitting", self._total) if is_long else contextlib.nullcontext():
            while self._done < self._total:
                batch: list[_Sent] = []
                try:
                    handles = await broker.submit_many(self._next(batch))
                except ProblemError as error:
                    raise click.ClickException(self._refused(error, batch)) from error
                if not handles:
                    raise click.ClickException(f"The file was changed meanwhile. {self._submitted()}")
                self._take(handles, batch)
        if self._total != 1 or self._existed:
            note(self._submitted())

    def _next(self, batch: list[_Sent]) -> Iterator[Mapping[str, Any]]:
        """The next tasks, as they are needed: of many large ones only some are in memory."""
        for given in islice(self._tasks, _BATCH):
            batch.append(_Sent(given.where, given.file, "id" in given.fields))
            yield given.fields

    def _take(self, handles: list[AsyncHandle], batch: list[_Sent]) -> None:
        self._done += len(handles)
        self._existed += sum(handle.existed is True for handle in handles)
        self._screen.advance(len(handles))
        if self._wait:
            for handle, sent in zip(handles, batch, strict=True):
                self._waiting.setdefault(handle.id, (handle, sent))
            return
        # Whoever has read enough of the ids does not keep the rest from being submitted.
        with contextlib.suppress(BrokenPipeError):
            self._screen.tell(*(handle.id for handle in handles))

    def _refused(self, error: ProblemError, batch: list[_Sent]) -> str:
        def place(found: re.Match[str]) -> str:
            where = batch[int(found[1])].where
            return f"{where}: " if where else ""

        fields = [f"{field.field}: {field.message}" for field in error.errors]
        told = re.sub(r"items\[(\d+)\]\.?", place, "\n  ".join(fields) or explained(error))
        return f"{told}\n{self._submitted()}" if self._done else told

    async def results(self, within: float | None) -> None:
        """Tell how each has ended, as it does; of those that are waited for.

        Args:
            within: So many seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: They have not all ended in that time.
        """
        if self._broker is None or not self._waiting:
            return
        handles = [handle for handle, _ in self._waiting.values()]
        with self._screen.bar("waiting", len(handles)):
            async for handle in self._broker.as_completed(handles, within):
                sent, task = self._waiting.pop(handle.id)[1], cast("Task", handle.task)
                self._states[task.state] += 1
                self._screen.advance(1, f"waiting, {self._unsuccessful():,} failed")
                self._screen.tell(_line(task, sent))
        if self._total != 1:
            note(", ".join(f"{count:,} {state}" for state, count in self._states.most_common()) + ".")

    async def result(self, within: float | None) -> None:
        """Tell the result of the only one.

        Raises:
            click.ClickException: It has none.
            TimeoutError: It has not ended in that time.
        """
        [(handle, _)] = self._waiting.values()
        telling = asyncio.create_task(self._tell_why_it_waits(handle))
        try:
            task = await handle.wait(within)
        finally:
            telling.cancel()
        if task.state != "succeeded":
            how = "failed" if task.state == "failed" else "was cancelled"
            why = f": {printable(task.error)}" if task.error else "."
            raise click.ClickException(f"Task {task.id} {how}{why}")
        self._screen.tell(bytes(task.result).decode())

    @staticmethod
    async def _tell_why_it_waits(handle: AsyncHandle) -> None:
        """Whoever hears nothing for long wonders; the task's id is good for finding out more."""
        await asyncio.sleep(_SILENT_SECONDS)
        with contextlib.suppress(ProblemError, httpx.TransportError):
            why = await handle.explain()
            note(f"Task {handle.id} is waited for. {one_line(why.detail)}")

    @property
    def has_begun(self) -> bool:
        """Whether some tasks were submitted."""
        return self._done > 0

    @property
    def has_succeeded(self) -> bool:
        """Whether all that have ended have succeeded."""
        return not self._unsuccessful()

    def left(self) -> str:
        """What becomes of those that are not done, and how to go on with them."""
        if self._done < self._total:
            return self._submitted()
        waits = next(iter(self._waiting), "ID")
        told = f"{self._going_on()}; `broker explain {waits}` says why it waits."
        nameless = [id_ for id_, (_, sent) in self._waiting.items() if not sent.named]
        if not nameless or self._broker is None:
            return f"{told} The same command waits again: the same ids are the same tasks."
        url = self._broker.connection.url
        key = ' -H "Authorization: Bearer $BROKER_KEY"' if os.environ.get("BROKER_KEY") else ""
        lines = [f"{told} To wait for one again: curl{key} '{url}/v1/tasks/ID?wait=60', where ID is"]
        lines += nameless[:_MOST_IDS]
        if (more := len(nameless) - _MOST_IDS) > 0:
            lines.append(f"or one of {more:,} more. Tasks that come with an id are easier to find again.")
        return "\n".join(lines)

    def _going_on(self) -> str:
        if self._total == 1:
            return "The task goes on"
        left, ended = len(self._waiting), self._states.total()
        rest = "the other one goes on" if left == 1 else "the others go on"
        return f"{ended:,} of {ended + left:,} tasks were waited for; {rest}" if ended else "All tasks go on"

    def _submitted(self) -> str:
        if self._done < self._total:
            return f"{self._done:,} of {self._total:,} tasks were submitted, and perhaps some more."
        created = f"{self._done - self._existed:,} created"
        if not self._existed:
            return f"{created}."
        return f"{created}, {self._existed:,} {'was' if self._existed == 1 else 'were'} there already."

    def _unsuccessful(self) -> int:
        return self._states.total() - self._states["succeeded"]


def _line(task: Task, sent: _Sent) -> str:
    outcome = Outcome(
        id=task.id,
        state=task.state,
        result=task.result,
        error=task.error,
        file=UNSET if sent.file is None else sent.file,
    )
    return msgspec.json.encode(outcome).decode()
