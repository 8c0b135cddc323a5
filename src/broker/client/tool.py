"""Tools: programs that do work for a broker."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Literal, Self, TypedDict, Unpack
from uuid import UUID

from broker.client import signals
from broker.client.addresses import in_path
from broker.client.completions import Completions
from broker.client.connection import Connection
from broker.client.errors import ProblemError, ToolLostError
from broker.client.functions import Functions
from broker.client.heartbeats import LOST, Heartbeats
from broker.client.job_run import Handler, JobRun, unless_ended
from broker.client.work_source import WorkSource
from broker.schemas.completion import Completed
from broker.schemas.limits import DEFAULT_LEASE_SECONDS
from broker.schemas.tools import RegisteredTool, ToolStatus
from broker.schemas.work import Work, WorkItems

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
# How long a stopping tool retries requests that are not essential.
_STOP_PATIENCE_SECONDS = 5.0


class ToolOptions(TypedDict, total=False):
    """Options of a tool, besides its id and its skills; see `Tool`."""

    capacity: int
    lease_seconds: float
    on_stop: Literal["finish", "release"]
    grace_seconds: float
    url: str | None
    key: str | None


class Tool:
    """A program that does tasks.

    The tool registers at the broker, waits for work, calls your handler for each job, and sends its result.
    Meanwhile it renews its lease, even while a handler is busy.

    Example:
        tool = Tool("counter", skills={"can": "count words"})

        @tool.handler
        def count(job: Job):
            return len(job.payload["text"].split())

        tool.run()

    Args:
        id: The id of the tool. Use the same id after a restart. Only one program at a time can use an id.
        skills: A JSON value that describes what the tool can do. The assigner compares it with the needs of
            the tasks.
        capacity: The maximum number of jobs at the same time, from 1 to 10,000. Default: 1.
        lease_seconds: If the tool sends no request for this many seconds, its lease expires, and its tasks
            become available to other tools. From 5 to 86,400. Default: 60.
        on_stop: The action for running jobs when the program is stopped. `"finish"` waits for them.
            `"release"` stops the handlers and gives the work back, so that its tasks become available
            again. These attempts do not count. Default: `"finish"`.
        grace_seconds: With `"release"`, how many seconds the handlers may take to stop. After that, the tool
            stops waiting for them. Default: 10.
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: A key with the role `tool`. Default: `BROKER_KEY`, or else no key.

    Attributes:
        id: The id of the tool.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        skills: object,
        *,
        capacity: int = 1,
        lease_seconds: float = DEFAULT_LEASE_SECONDS,
        on_stop: Literal["finish", "release"] = "finish",
        grace_seconds: float = 10.0,
        url: str | None = None,
        key: str | None = None,
    ) -> None:
        self.id = id
        self._registration = {
            "id": id,
            "skills": skills,
            "capacity": capacity,
            "lease_seconds": lease_seconds,
        }
        self._capacity = capacity
        self._lease_seconds = lease_seconds
        self._on_stop = on_stop
        self._grace_seconds = grace_seconds
        self._url = url
        self._key = key
        self._path = f"/v1/tools/{in_path(id)}"
        self._handler: Handler | None = None
        self._runs: dict[UUID, JobRun] = {}
        self._is_lost = False

    @classmethod
    def calling(
        cls,
        id: str,  # noqa: A002
        *functions: Callable[..., object],
        skills: Mapping[str, object] | None = None,
        **options: Unpack[ToolOptions],
    ) -> Self:
        """Return a tool that calls functions for programs that use an `Executor`.

        Example:
            Tool.calling("worker-1", measure, fit, capacity=4).run()

        Args:
            id: The id of the tool. Use the same id after a restart.
            functions: The functions, from modules that the other programs can import, too. The tool calls no
                other functions.
            skills: A dict of further skills. The tool adds the names of the functions as `function`.
            options: The other arguments of `Tool`, such as `capacity` and `url`.

        Raises:
            ValueError: Other programs cannot import a function by its name, or the function is asynchronous.
        """
        handler = Functions(functions)
        tool = cls(id, {**(skills or {}), **handler.skills}, **options)
        tool.handler(handler)
        return tool

    def handler(self, function: Handler) -> Handler:
        """Set the function that does the jobs. Use it as a decorator.

        An ordinary function gets a `Job` and runs in its own thread. An `async def` function gets an
        `AsyncJob` and runs in the event loop. If an ordinary function returns an awaitable, the tool awaits
        it.

        The returned value is the result of the task. It may contain numbers, strings, lists, dicts, None,
        dataclasses, enums, times, paths, numpy arrays, pydantic models and values like them. The guide at
        `/help/guides/python-tools/` on your broker lists their JSON forms. If a value has no JSON form,
        the task fails without a retry.

        If the function raises an exception, the attempt has failed. The broker retries the task until it has
        made `max_attempts` attempts. `FailedError(..., retry=False)` prevents the retry.

        When a job should stop, `job.cancelled` becomes True. The tool also cancels an `async def` function.

        Args:
            function: The function.

        Returns:
            The same function.
        """
        self._handler = function
        return function

    def run(self) -> None:
        """Register the tool and do its work until SIGTERM or Ctrl-C stops the process.

        Then the tool accepts no more work and finishes or releases its running jobs, as `on_stop` says. A
        second signal ends the process at once. Call this method from the main thread; in an asynchronous
        program, await `work` instead.

        Raises:
            RuntimeError: The tool has no handler.
            SystemExit: The broker refused the tool, the tool is lost, or a setting is not valid. The message
                says why.
        """
        signals.run_until_signal(self.work())

    async def work(self) -> None:
        """Register the tool and do its work until the coroutine is cancelled.

        Then the tool accepts no more work and finishes or releases its running jobs, as `on_stop` says.

        Raises:
            RuntimeError: The tool has no handler.
            ToolLostError: Another program has registered with the tool's id, somebody has deleted the tool,
                or its key was revoked.
            ProblemError: The broker refused the registration.
            SettingError: The URL or the key is not valid.
        """
        if self._handler is None:
            raise RuntimeError("the tool has no handler; decorate a function with @tool.handler")
        async with Connection(self._url, key=self._key) as connection:
            registered = await connection.call("POST", "/v1/tools", RegisteredTool, json=self._registration)
            connection.use(registered.token)
            log.info("registered tool %s at %s", self.id, connection.url)
            source = WorkSource(connection, self._path, self._capacity)
            heartbeats = self._heartbeats(connection, registered.token, source)
            heartbeats.start()
            self._is_lost = False
            accepting = asyncio.create_task(self._accept_all(connection, source, self._handler))
            try:
                await asyncio.wait([accepting, heartbeats.lost], return_when=asyncio.FIRST_COMPLETED)
                (heartbeats.lost if heartbeats.lost.done() else accepting).result()
            except ProblemError as error:
                if error.code not in LOST:
                    raise
                source.stop()
                lost = ToolLostError.of(self.id, error.problem)
                log.error("%s", lost.problem.detail)  # noqa: TRY400 - a traceback would add nothing
                await self._abandon_all()
                raise lost from error
            finally:
                source.stop()
                accepting.cancel()
                await asyncio.wait([accepting])
                if not self._is_lost:
                    await self._stop(connection)
                await heartbeats.stop()

    def _heartbeats(self, connection: Connection, token: str, source: WorkSource) -> Heartbeats:
        """Return the heartbeats. They stop the handlers if the tool is lost."""
        heartbeats = Heartbeats(
            connection,
            token,
            self._path,
            self._lease_seconds,
            at_work=self._at_work,
            is_needed=lambda: self._is_at_work() or not source.is_waiting or connection.is_away,
            cancel=self._cancel,
        )

        def stop(lost: asyncio.Future[None]) -> None:
            if not lost.cancelled():
                self._cancel(list(self._runs))

        heartbeats.lost.add_done_callback(stop)
        return heartbeats

    def _at_work(self) -> list[str]:
        """Return the names of the running handlers and their tasks. Any thread may call it."""
        name = getattr(self._handler, "__qualname__", type(self._handler).__name__)
        return [f"{name} (task {run.task_id})" for run in list(self._runs.values())]

    def _is_at_work(self) -> bool:
        """Return whether a handler runs. Any thread may call it."""
        return any(run.is_running for run in list(self._runs.values()))

    def _cancel(self, ids: Iterable[UUID]) -> None:
        """Ask the handlers of cancelled work to stop."""
        for id_ in ids:
            if (run := self._runs.get(id_)) is not None:
                run.cancel()

    async def _abandon_all(self) -> None:
        """Ask all handlers to stop, because their work no longer belongs to this program."""
        self._is_lost = True
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        if not await _all_done(runs, within=self._grace_seconds):
            for run in runs:
                run.abandon()

    async def _accept_all(self, connection: Connection, source: WorkSource, handler: Handler) -> None:
        """Accept work and start its jobs, until cancelled."""
        completions = Completions(connection)
        new_run = partial(JobRun, connection, completions, source, handler)
        while True:
            runs = await self._accept(source, new_run)
            with completions.held():
                for run in runs:
                    # The broker returns the work again until it is started.
                    await run.begun.wait()

    async def _accept(self, source: WorkSource, new_run: Callable[[Work], JobRun]) -> Collection[JobRun]:
        """Wait for work, start its jobs, and return them.

        A handler may continue after its work has ended. The broker may then have assigned more work than the
        tool has capacity for.
        """
        while (room := self._capacity - len(self._runs)) <= 0:
            await asyncio.wait([run.task for run in self._runs.values()], return_when=asyncio.FIRST_COMPLETED)
        items = await source.wait()
        new = [work for work in items if work.id not in self._runs][:room]
        if items and not new:
            # The broker refused to start this work.
            await asyncio.sleep(_PAUSE_SECONDS)
        runs = {work.id: new_run(work) for work in new}
        self._runs |= runs
        for id_, run in runs.items():
            run.task.add_done_callback(partial(self._forget, id_))
        return runs.values()

    def _forget(self, id_: UUID, _: object) -> None:
        self._runs.pop(id_, None)

    async def _stop(self, connection: Connection) -> None:
        """Accept no more work, release work that has not started, and finish or release the running jobs."""
        runs = list(self._runs.values())
        if running := sum(run.is_running for run in runs):
            action = "finishing" if self._on_stop == "finish" else "releasing"
            log.warning("stopping: %s running jobs (%d); a second signal stops at once", action, running)
        if self._on_stop == "release":
            for run in runs:
                run.release()
        with contextlib.suppress(Exception):  # if this fails, the lease expires and the work returns
            await self._drain(connection)
        if self._on_stop == "finish":
            await _all_done(runs)
        elif not await _all_done(runs, within=self._grace_seconds):
            for run in runs:
                run.abandon()
            await _all_done(runs, within=_STOP_PATIENCE_SECONDS)

    async def _drain(self, connection: Connection) -> None:
        """Drain the tool and release the work that it has not started."""
        patience = _STOP_PATIENCE_SECONDS
        call, body = connection.call, {"draining": True}
        await call("PATCH", self._path, ToolStatus, json=body, patience_seconds=patience)
        seen = set(self._runs)
        while True:
            # If the work is large, a response contains only a part of it.
            page = await call("GET", f"{self._path}/work", WorkItems, patience_seconds=patience)
            if not (new := [work for work in page.items if work.id not in seen]):
                return
            for work in new:
                seen.add(work.id)
                path, released = f"/v1/work/{work.id}/complete", {"outcome": "released"}
                await unless_ended(call("POST", path, Completed, json=released, patience_seconds=patience))


async def _all_done(runs: Collection[JobRun], *, within: float | None = None) -> bool:
    """Wait until jobs are completed; return whether all of them were completed in time."""
    if not runs:
        return True
    _, late = await asyncio.wait([run.task for run in runs], timeout=within)
    return not late
