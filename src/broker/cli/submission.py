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
# After this long without a result, the command prints why the task waits.
_SILENT_SECONDS = 10.0


class SubmissionResult(msgspec.Struct, kw_only=True):
    """The outcome of a task, as the command prints it."""

    id: str
    state: str
    result: Raw
    error: str | None
    file: str | UnsetType = UNSET


class _Sent(NamedTuple):
    """A task that was sent: its place in the input, its file, and whether the user chose its id."""

    where: str
    file: str | None
    named: bool


class SubmitRun:
    """Submits tasks, and waits for their results.

    Args:
        broker: The connected client.
        tasks: The tasks. The submission iterates over them once.
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
        """Submit all tasks. If the broker refuses one, the error message names it."""
        is_long = self._total > _BATCH
        with self._output.bar("submitting", self._total) if is_long else contextlib.nullcontext():
            while self._done < self._total:
                batch: list[_Sent] = []
                try:
                    handles = await self._broker.submit_many(self._next_batch(batch))
                except ProblemError as error:
                    raise click.ClickException(self._refusal(error, batch)) from error
                if not handles:
                    raise click.ClickException(
                        f"The file changed while the command read it. {self._describe_submitted()}"
                    )
                self._count(handles, batch)
        if self._total != 1 or self._existed:
            note(self._describe_submitted())

    def _next_batch(self, batch: list[_Sent]) -> Iterator[Mapping[str, Any]]:
        """Yield the tasks of the next batch one by one, because they may not all fit in memory."""
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
        # Submit the other tasks even if the reader of the ids has ended.
        with contextlib.suppress(BrokenPipeError):
            self._output.write(*(handle.id for handle in handles))

    def _refusal(self, error: ProblemError, batch: list[_Sent]) -> str:
        def place(match: re.Match[str]) -> str:
            where = batch[int(match[1])].where
            return f"{where}: " if where else ""

        fields = [f"{field.field}: {field.message}" for field in error.errors]
        message = re.sub(r"items\[(\d+)\]\.?", place, "\n  ".join(fields) or explained(error))
        return f"{message}\n{self._describe_submitted()}" if self._done else message

    async def results(self, within: float | None) -> None:
        """Wait for the tasks, and print the outcome of each.

        Raises:
            TimeoutError: Some tasks have not ended within this number of seconds.
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
            TimeoutError: The task has not ended within this number of seconds.
        """
        [(handle, _)] = self._waiting.values()
        explaining = asyncio.create_task(self._explain_later(handle))
        try:
            task = await handle.wait(within)
        finally:
            explaining.cancel()
        if task.state != "succeeded":
            outcome = "failed" if task.state == "failed" else "was cancelled"
            why = ": " + replace_unprintable(task.error, keep="\n\t") if task.error else "."
            raise click.ClickException(f"Task {task.id} {outcome}{why}")
        self._output.write(bytes(task.result).decode())

    @staticmethod
    async def _explain_later(handle: AsyncHandle) -> None:
        """Print why the task waits, and its id, if it has not ended after some seconds."""
        await asyncio.sleep(_SILENT_SECONDS)
        with contextlib.suppress(ProblemError, httpx.TransportError):
            why = await handle.explain()
            note(f"Waiting for task {handle.id}. {one_line(why.detail)}")

    @property
    def has_begun(self) -> bool:
        """Return whether the command has submitted any tasks."""
        return self._done > 0

    @property
    def unsuccessful(self) -> int:
        """Return the number of ended tasks that did not succeed."""
        return self._states.total() - self._states["succeeded"]

    def describe_unfinished(self) -> str:
        """Describe the tasks that have not ended, and how to wait for them again."""
        if self._done < self._total:
            return self._describe_submitted()
        waits = next(iter(self._waiting), "ID")
        message = f"{self._describe_remaining()} `broker explain {waits}` says why a task waits."
        without_id = [id_ for id_, (_, sent) in self._waiting.items() if not sent.named]
        if not without_id:
            return f"{message} To wait again, repeat the command. It does not submit the same ids twice."
        url = self._broker.connection.url
        key = ' -H "Authorization: Bearer $BROKER_KEY"' if os.environ.get("BROKER_KEY") else ""
        command = f"curl{key} '{url}/v1/tasks/ID?wait={LONGEST_WAIT_SECONDS}'"
        lines = [f"{message} To wait again for a task, run {command}, with one of these ids as ID:"]
        lines += without_id[:_MOST_IDS]
        if (more := len(without_id) - _MOST_IDS) > 0:
            lines.append(f"and {more:,} more. If you give tasks an id, you can repeat the command instead.")
        return "\n".join(lines)

    def _describe_remaining(self) -> str:
        if self._total == 1:
            return "The task continues."
        left, ended = len(self._waiting), self._states.total()
        if not ended:
            return "All tasks continue."
        others = "the other one continues" if left == 1 else "the others continue"
        return f"{ended:,} of {ended + left:,} tasks have ended, {others}."

    def _describe_submitted(self) -> str:
        if self._done < self._total:
            return f"At least {self._done:,} of {self._total:,} tasks were submitted."
        created = f"{self._done - self._existed:,} created"
        if not self._existed:
            return f"{created}."
        return f"{created}, {self._existed:,} existed already."


def _line(task: Task, sent: _Sent) -> str:
    result = SubmissionResult(
        id=task.id,
        state=task.state,
        result=task.result,
        error=task.error,
        file=UNSET if sent.file is None else sent.file,
    )
    return msgspec.json.encode(result).decode()
