"""The tool: a program that does work for a broker."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Literal, Self, TypedDict, Unpack
from uuid import UUID

from msgspec import structs

from broker.client import signals
from broker.client.addresses import in_path
from broker.client.completions import Completions
from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.client.functions import Functions
from broker.client.heartbeats import LOST, Heartbeats
from broker.client.job_run import Handler, JobRun, unless_ended
from broker.schemas.completion import Completed
from broker.schemas.limits import DEFAULT_LEASE_SECONDS
from broker.schemas.problems import Problem
from broker.schemas.tools import RegisteredTool, ToolStatus
from broker.schemas.work import WorkItems

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 1.0
# How long a stopping tool retries requests that it could also leave out.
_STOP_PATIENCE_SECONDS = 5.0


class ToolLostError(ProblemError):
    """The tool does not belong to this program any more. Registering again takes it back."""

    advice = None

    @classmethod
    def of(cls, tool_id: str, problem: Problem) -> Self:
        """Return the error for a problem by which the broker says that the tool is lost."""
        if problem.code == "tool_not_found":
            why = "it was deleted from the broker"
        else:
            why = "another program has registered with its id since, or its key was revoked"
        return cls(structs.replace(problem, detail=f"Tool {tool_id} must end: {why}."))


class ToolOptions(TypedDict, total=False):
    """The options of a tool, besides its id and its skills; see `Tool`."""

    capacity: int
    lease_seconds: float
    on_stop: Literal["finish", "release"]
    grace_seconds: float
    url: str | None
    key: str | None


class Tool:
    """A program that does work.

    Args:
        id: The id of the tool. Keep it the same after a restart.
        skills: What the tool can do; any JSON value that the assigner understands.
        capacity: How many jobs it does at once.
        lease_seconds: If the broker hears nothing from the tool for this long, it gives its work to other
            tools.
        on_stop: What happens to running jobs when the program is stopped: `finish` them, or `release` their
            work for another attempt, which does not count as one.
        grace_seconds: With `release`, how long handlers may take to stop before their work is released.
        url: The URL of the broker. Default: `BROKER_URL`, or else the local broker.
        key: The key. Default: `BROKER_KEY`, or else none.
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
        # Whether a request waits for work. While it waits, the lease does not expire.
        self._is_waiting = False
        self._is_lost = False

    @classmethod
    def calling(
        cls,
        id: str,  # noqa: A002
        *functions: Callable[..., object],
        skills: Mapping[str, object] | None = None,
        **options: Unpack[ToolOptions],
    ) -> Self:
        """Return a tool that calls functions for programs with an `Executor`.

        Args:
            id: The id of the tool. Keep it the same after a restart.
            functions: Functions of modules. The tool calls no other ones.
            skills: Further skills of the tool.
            options: The other arguments of a tool.

        Raises:
            ValueError: A function has no name by which other programs could call it.
        """
        handler = Functions(functions)
        tool = cls(id, {**(skills or {}), **handler.skills}, **options)
        tool.handler(handler)
        return tool

    def handler(self, function: Handler) -> Handler:
        """Set the function that does the jobs. Its argument is a `Job`, and it returns the result.

        An ordinary function runs in a thread, and its argument is a `Job`. An `async def` function runs in
        the event loop, and its argument is an `AsyncJob`. If the result is awaitable, it is awaited.
        docs/guides/python-tools.md lists the values that a result may hold.

        An exception means that the work has failed; `FailedError(..., retry=False)` also prevents a retry. If
        a job should stop, `job.cancelled` is true, and an `async def` handler is cancelled.
        """
        self._handler = function
        return function

    def run(self) -> None:
        """Work until SIGTERM or Ctrl-C stops the process. A second signal ends it at once."""
        signals.run_until_signal(self.work())

    async def work(self) -> None:
        """Register and work until cancelled; then finish the running jobs, or release their work.

        Raises:
            ToolLostError: Another program has registered with the tool's id, or the tool was deleted.
            ProblemError: The broker refuses the registration.
        """
        if self._handler is None:
            raise RuntimeError("the tool has no handler: decorate a function with @tool.handler")
        async with Connection(self._url, key=self._key) as connection:
            registered = await connection.call("POST", "/v1/tools", RegisteredTool, json=self._registration)
            connection.use(registered.token)
            log.info("registered as %s at %s", self.id, connection.url)
            heartbeats = self._heartbeats(connection, registered.token)
            heartbeats.start()
            self._is_lost = False
            accepting = asyncio.create_task(self._accept_all(connection, self._handler))
            try:
                await asyncio.wait([accepting, heartbeats.lost], return_when=asyncio.FIRST_COMPLETED)
                (heartbeats.lost if heartbeats.lost.done() else accepting).result()
            except ProblemError as error:
                if error.code not in LOST:
                    raise
                lost = ToolLostError.of(self.id, error.problem)
                log.error("%s", lost.problem.detail)  # noqa: TRY400 - the message says it all
                await self._abandon_all()
                raise lost from error
            finally:
                accepting.cancel()
                await asyncio.wait([accepting])
                if not self._is_lost:
                    await self._stop(connection)
                await heartbeats.stop()

    def _heartbeats(self, connection: Connection, token: str) -> Heartbeats:
        """Return the heartbeats. They stop the handlers if the tool is lost."""
        heartbeats = Heartbeats(
            connection,
            token,
            self._path,
            self._lease_seconds,
            at_work=self._at_work,
            is_needed=lambda: bool(self._runs) or not self._is_waiting or connection.is_away,
            cancel=self._cancel,
        )

        def stop(lost: asyncio.Future[None]) -> None:
            if not lost.cancelled():
                self._cancel(list(self._runs))

        heartbeats.lost.add_done_callback(stop)
        return heartbeats

    def _at_work(self) -> list[str]:
        """Return the names of the running handlers, for people. Any thread may call it."""
        name = getattr(self._handler, "__qualname__", type(self._handler).__name__)
        return [f"{name} (task {run.task_id})" for run in list(self._runs.values())]

    def _cancel(self, ids: Iterable[UUID]) -> None:
        """Ask the handlers of cancelled work to stop."""
        for id_ in ids:
            if (run := self._runs.get(id_)) is not None:
                run.cancel()

    async def _abandon_all(self) -> None:
        """Ask all handlers to stop: their work belongs to another program, or to none."""
        self._is_lost = True
        runs = list(self._runs.values())
        for run in runs:
            run.cancel()
        if not await _all_done(runs, within=self._grace_seconds):
            for run in runs:
                run.abandon()

    async def _accept_all(self, connection: Connection, handler: Handler) -> None:
        """Accept work and start its jobs, until cancelled."""
        completions = Completions(connection)
        while True:
            await self._accept(connection, completions, handler)

    async def _accept(self, connection: Connection, completions: Completions, handler: Handler) -> None:
        """Wait for work, and start its jobs.

        A handler may continue after its work has ended. Then the broker has assigned more than fits.
        """
        while (room := self._capacity - len(self._runs)) <= 0:
            await asyncio.wait([run.task for run in self._runs.values()], return_when=asyncio.FIRST_COMPLETED)
        query = {"wait": _WAIT_SECONDS}
        self._is_waiting = True
        try:
            path = f"{self._path}/work"
            page = await connection.call("GET", path, WorkItems, query=query, wait=_WAIT_SECONDS)
        finally:
            self._is_waiting = False
        new = [work for work in page.items if work.id not in self._runs][:room]
        if page.items and not new:
            # The broker did not start this work.
            await asyncio.sleep(_PAUSE_SECONDS)
        runs = {work.id: JobRun(connection, completions, work, handler) for work in new}
        self._runs |= runs
        for id_, run in runs.items():
            run.task.add_done_callback(partial(self._forget, id_))
        for run in runs.values():
            # The broker returns the work again until it is started.
            await run.begun.wait()

    def _forget(self, id_: UUID, _: object) -> None:
        self._runs.pop(id_, None)

    async def _stop(self, connection: Connection) -> None:
        """Accept no more work, release what was not started, and finish or release the rest."""
        runs = list(self._runs.values())
        if runs:
            activity = "finishing" if self._on_stop == "finish" else "giving back"
            log.warning("stopping: %s %d in hand; a second signal ends this at once", activity, len(runs))
        if self._on_stop == "release":
            for run in runs:
                run.release()
        with contextlib.suppress(Exception):  # nothing is lost: the lease expires
            await self._drain(connection)
        if self._on_stop == "finish":
            await _all_done(runs)
        elif not await _all_done(runs, within=self._grace_seconds):
            for run in runs:
                run.abandon()
            await _all_done(runs, within=_STOP_PATIENCE_SECONDS)

    async def _drain(self, connection: Connection) -> None:
        """Drain the tool, and release the work that it has not started."""
        patience = _STOP_PATIENCE_SECONDS
        call, body = connection.call, {"draining": True}
        await call("PATCH", self._path, ToolStatus, json=body, patience_seconds=patience)
        seen = set(self._runs)
        while True:
            # A response may have only some of the work, if it is large.
            page = await call("GET", f"{self._path}/work", WorkItems, patience_seconds=patience)
            if not (new := [work for work in page.items if work.id not in seen]):
                return
            for work in new:
                seen.add(work.id)
                path, released = f"/v1/work/{work.id}/complete", {"outcome": "released"}
                await unless_ended(call("POST", path, Completed, json=released, patience_seconds=patience))


async def _all_done(runs: Collection[JobRun], *, within: float | None = None) -> bool:
    """Wait for jobs to be completed; return whether all of them were in time."""
    if not runs:
        return True
    _, late = await asyncio.wait([run.task for run in runs], timeout=within)
    return not late
