"""Submit tasks in batches, and wait for their results."""

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

from broker.cli.output import CommandOutput, note
from broker.cli.task_files import TaskInput
from broker.client import AsyncBroker, AsyncHandle, ProblemError
from broker.client.errors import explained
from broker.schemas.limits import LONGEST_WAIT_SECONDS
from broker.schemas.tasks import Task
from broker.texts import one_line, replace_unprintable

_BATCH = 1_000
_MOST_IDS = 100
# After this long without a result, the user learns why the task waits.
_SILENT_SECONDS = 10.0


class SubmissionResult(msgspec.Struct, kw_only=True):
    """The end of a task, as the command prints it."""

    id: str
    state: str
    result: Raw
    error: str | None
    file: str | UnsetType = UNSET


class _Sent(NamedTuple):
    """A task that was sent: its place in the input, its file, and whether the user gave its id."""

    where: str
    file: str | None
    named: bool


class SubmitRun:
    """Submits tasks, and waits for their results.

    Args:
        broker: The connected client.
        tasks: The tasks; the submission iterates over them once.
        total: The number of tasks.
        wait: Whether to wait for the tasks. If not, the submission prints their ids.
    """

    def __init__(self, broker: AsyncBroker, tasks: Iterable[TaskInput], total: int, *, wait: bool) -> None:
        self._broker = broker
        self._tasks = iter(tasks)
        self._total = total
        self._output = CommandOutput()
        self._wait = wait
        self._done = self._existed = 0
        self._waiting: dict[str, tuple[AsyncHandle, _Sent]] = {}
        self._states: Counter[str] = Counter()

    async def submit(self) -> None:
        """Submit all tasks, unless the broker refuses one; the error message says which."""
        is_long = self._total > _BATCH
        with self._output.bar("submitting", self._total) if is_long else contextlib.nullcontext():
            while self._done < self._total:
                batch: list[_Sent] = []
                try:
                    handles = await self._broker.submit_many(self._next(batch))
                except ProblemError as error:
                    raise click.ClickException(self._refused(error, batch)) from error
                if not handles:
                    raise click.ClickException(f"The file was changed meanwhile. {self._submitted()}")
                self._count(handles, batch)
        if self._total != 1 or self._existed:
            note(self._submitted())

    def _next(self, batch: list[_Sent]) -> Iterator[Mapping[str, Any]]:
        """Yield the tasks of the next batch, one by one: not all of them fit in memory."""
        for task in islice(self._tasks, _BATCH):
            batch.append(_Sent(task.where, task.file, "id" in task.fields))
            yield task.fields

    def _count(self, handles: list[AsyncHandle], batch: list[_Sent]) -> None:
        self._done += len(handles)
        self._existed += sum(handle.existed is True for handle in handles)
        self._output.advance(len(handles))
        if self._wait:
            for handle, sent in zip(handles, batch, strict=True):
                self._waiting.setdefault(handle.id, (handle, sent))
            return
        # If the reader of the ids has ended, submit the rest all the same.
        with contextlib.suppress(BrokenPipeError):
            self._output.write(*(handle.id for handle in handles))

    def _refused(self, error: ProblemError, batch: list[_Sent]) -> str:
        def place(match: re.Match[str]) -> str:
            where = batch[int(match[1])].where
            return f"{where}: " if where else ""

        fields = [f"{field.field}: {field.message}" for field in error.errors]
        message = re.sub(r"items\[(\d+)\]\.?", place, "\n  ".join(fields) or explained(error))
        return f"{message}\n{self._submitted()}" if self._done else message

    async def results(self, within: float | None) -> None:
        """Wait for the tasks, and print how each ends.

        Raises:
            TimeoutError: Some tasks have not ended within so many seconds.
        """
        if not self._waiting:
            return
        handles = [handle for handle, _ in self._waiting.values()]
        with self._output.bar("waiting", len(handles)):
            async for handle in self._broker.as_completed(handles, within):
                sent, task = self._waiting.pop(handle.id)[1], cast("Task", handle.task)
                self._states[task.state] += 1
                self._output.advance(1, f"waiting, {self.unsuccessful:,} failed")
                self._output.write(_line(task, sent))
        if self._total != 1:
            note(", ".join(f"{count:,} {state}" for state, count in self._states.most_common()) + ".")

    async def result(self, within: float | None) -> None:
        """Wait for the only task, and print its result.

        Raises:
            click.ClickException: The task did not succeed.
            TimeoutError: The task has not ended within so many seconds.
        """
        [(handle, _)] = self._waiting.values()
        explaining = asyncio.create_task(self._explain_later(handle))
        try:
            task = await handle.wait(within)
        finally:
            explaining.cancel()
        if task.state != "succeeded":
            how = "failed" if task.state == "failed" else "was cancelled"
            why = ": " + replace_unprintable(task.error, keep="\n\t") if task.error else "."
            raise click.ClickException(f"Task {task.id} {how}{why}")
        self._output.write(bytes(task.result).decode())

    @staticmethod
    async def _explain_later(handle: AsyncHandle) -> None:
        """Print why the task waits, and its id, if there is no result for some seconds."""
        await asyncio.sleep(_SILENT_SECONDS)
        with contextlib.suppress(ProblemError, httpx.TransportError):
            why = await handle.explain()
            note(f"Task {handle.id} is waited for. {one_line(why.detail)}")

    @property
    def has_begun(self) -> bool:
        """Return whether some tasks were submitted."""
        return self._done > 0

    @property
    def unsuccessful(self) -> int:
        """Return the number of ended tasks that have not succeeded."""
        return self._states.total() - self._states["succeeded"]

    def left(self) -> str:
        """Describe the tasks that have not ended, and how to wait for them again."""
        if self._done < self._total:
            return self._submitted()
        waits = next(iter(self._waiting), "ID")
        message = f"{self._going_on()}; `broker explain {waits}` says why it waits."
        without_id = [id_ for id_, (_, sent) in self._waiting.items() if not sent.named]
        if not without_id:
            return f"{message} The same command waits again: the same ids are the same tasks."
        url = self._broker.connection.url
        key = ' -H "Authorization: Bearer $BROKER_KEY"' if os.environ.get("BROKER_KEY") else ""
        command = f"curl{key} '{url}/v1/tasks/ID?wait={LONGEST_WAIT_SECONDS}'"
        lines = [f"{message} To wait for one again: {command}, where ID is"]
        lines += without_id[:_MOST_IDS]
        if (more := len(without_id) - _MOST_IDS) > 0:
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


def _line(task: Task, sent: _Sent) -> str:
    result = SubmissionResult(
        id=task.id,
        state=task.state,
        result=task.result,
        error=task.error,
        file=UNSET if sent.file is None else sent.file,
    )
    return msgspec.json.encode(result).decode()
