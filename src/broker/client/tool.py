"""A tool: a program that does work for a broker."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
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
from broker.schemas import tools as schemas
from broker.schemas.completion import Completed
from broker.schemas.problems import Problem
from broker.schemas.tools import RegisteredTool
from broker.schemas.work import WorkItems

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 1.0
# How long a broker that is away keeps us from stopping, where that loses nothing.
_STOP_PATIENCE_SECONDS = 5.0


class ToolLostError(ProblemError):
    """The tool does not belong to this program any more; registering again takes it back."""

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
    """What may be said of a tool besides its id and its skills; see `Tool`."""

    capacity: int
    lease_seconds: float
    on_stop: Literal["finish", "release"]
    grace_seconds: float
    url: str | None
    key: str | None


class Tool:
    """A program that does work.

    Args:
        id: What it is called; the same after a restart.
        skills: What it can do; any JSON value that the assigner understands.
        capacity: How much work it takes at once.
        lease_seconds: Silent for longer, it is taken for dead.
        on_stop: What becomes of the work in hand when the program is told to stop: it is finished, or given
            back for another attempt (`release`), which counts as none.
        grace_seconds: With `release`, how long handlers have to stop before their work is given back.
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        skills: object,
        *,
        capacity: int = 1,
        lease_seconds: float = 60.0,
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
        self._in_hand: dict[UUID, JobRun] = {}
        # Whether a request waits for work, which renews the lease.
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
        """A tool that calls functions, for programs that have them called by an `Executor`.

        Args:
            id: What it is called; the same after a restart.
            functions: Functions of modules; no others are called, whatever a task asks for.
            skills: What it can do besides.
            options: The other arguments of a tool.

        Raises:
            ValueError: A function has no name by which others could call it.
        """
        handler = Functions(functions)
        tool = cls(id, {**(skills or {}), **handler.skills}, **options)
        tool.handler(handler)
        return tool

    def handler(self, function: Handler) -> Handler:
        """Have a function do the work: it is given the work, and what it returns is the result.

        An ordinary function runs in a thread, an `async def` one in the loop; what either returns is awaited
        if it can be. docs/connect-a-program.md says what a result may hold. An exception means that the work
        has failed; `FailedError(..., retry=False)` that no other attempt is worth it. Work that should stop
        says so in `work.cancelled`; an `async def` handler is cancelled then.
        """
        self._handler = function
        return function

    def run(self) -> None:
        """Work until the process is told to stop (SIGTERM, Ctrl-C); a second signal ends it at once."""
        signals.run_until_signal(self.work())

    async def work(self) -> None:
        """Register, and work until cancelled; then finish what is in hand, or give it back.

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
            taking = asyncio.create_task(self._take_all(connection, self._handler))
            try:
                await asyncio.wait([taking, heartbeats.lost], return_when=asyncio.FIRST_COMPLETED)
                (heartbeats.lost if heartbeats.lost.done() else taking).result()
            except ProblemError as error:
                if error.code not in LOST:
                    raise
                lost = ToolLostError.of(self.id, error.problem)
                log.error("%s", lost.problem.detail)  # noqa: TRY400 - the message says it all
                await self._leave()
                raise lost from error
            finally:
                taking.cancel()
                await asyncio.wait([taking])
                if not self._is_lost:
                    await self._stop(connection)
                await heartbeats.stop()

    def _heartbeats(self, connection: Connection, token: str) -> Heartbeats:
        """Return the heartbeats; they stop the handlers if the tool is lost."""
        heartbeats = Heartbeats(
            connection,
            token,
            self._path,
            self._lease_seconds,
            at_work=self._at_work,
            is_needed=lambda: bool(self._in_hand) or not self._is_waiting or connection.is_away,
            cancel=self._cancel,
        )

        def stop(lost: asyncio.Future[None]) -> None:
            if not lost.cancelled():
                self._cancel(list(self._in_hand))

        heartbeats.lost.add_done_callback(stop)
        return heartbeats

    def _at_work(self) -> list[str]:
        """Return the names of the running handlers, for people. Any thread may call it."""
        name = getattr(self._handler, "__qualname__", type(self._handler).__name__)
        return [f"{name} (task {job.task_id})" for job in list(self._in_hand.values())]

    def _cancel(self, ids: Iterable[UUID]) -> None:
        """Have handlers stop whose work is to be cancelled."""
        for id_ in ids:
            if (job := self._in_hand.get(id_)) is not None:
                job.cancel()

    async def _leave(self) -> None:
        """Have handlers stop: their work is another program's, or nobody's."""
        self._is_lost = True
        jobs = list(self._in_hand.values())
        for job in jobs:
            job.cancel()
        if not await _all_done(jobs, within=self._grace_seconds):
            for job in jobs:
                job.abandon()

    async def _take_all(self, connection: Connection, handler: Handler) -> None:
        """Take work, and begin with it, until cancelled."""
        completions = Completions(connection)
        while True:
            await self._take(connection, completions, handler)

    async def _take(self, connection: Connection, completions: Completions, handler: Handler) -> None:
        """Wait for work, and begin with it.

        A handler may go on though its work has ended, and the broker takes the tool to be free.
        """
        while (room := self._capacity - len(self._in_hand)) <= 0:
            await asyncio.wait(
                [job.task for job in self._in_hand.values()], return_when=asyncio.FIRST_COMPLETED
            )
        query = {"wait": _WAIT_SECONDS}
        self._is_waiting = True
        try:
            path = f"{self._path}/work"
            found = await connection.call("GET", path, WorkItems, query=query, wait=_WAIT_SECONDS)
        finally:
            self._is_waiting = False
        new = [work for work in found.items if work.id not in self._in_hand][:room]
        if found.items and not new:
            # It could not be started.
            await asyncio.sleep(_PAUSE_SECONDS)
        jobs = [JobRun(connection, completions, work, handler) for work in new]
        for work, job in zip(new, jobs, strict=True):
            self._in_hand[work.id] = job
            job.add_done_callback(partial(self._in_hand.pop, work.id, None))
        for job in jobs:
            # Until it is started it would be found again.
            await job.begun.wait()

    async def _stop(self, connection: Connection) -> None:
        """Take no more, give back what was not started, and finish the rest or give that back, too."""
        jobs = list(self._in_hand.values())
        if jobs:
            doing = "finishing" if self._on_stop == "finish" else "giving back"
            log.warning("stopping: %s %d in hand; a second signal ends this at once", doing, len(jobs))
        if self._on_stop == "release":
            for job in jobs:
                job.release()
        with contextlib.suppress(Exception):  # it loses nothing: leases and deadlines see to it
            await self._take_no_more(connection)
        if self._on_stop == "finish":
            await _all_done(jobs)
        elif not await _all_done(jobs, within=self._grace_seconds):
            for job in jobs:
                job.abandon()
            await _all_done(jobs, within=_STOP_PATIENCE_SECONDS)

    async def _take_no_more(self, connection: Connection) -> None:
        patience = _STOP_PATIENCE_SECONDS
        await connection.call(
            "PATCH", self._path, schemas.ToolStatus, json={"draining": True}, patience_seconds=patience
        )
        seen = set(self._in_hand)
        while True:
            # Of large work a response has only the first.
            found = await connection.call("GET", f"{self._path}/work", WorkItems, patience_seconds=patience)
            if not (new := [work for work in found.items if work.id not in seen]):
                return
            for work in new:
                seen.add(work.id)
                path, body = f"/v1/work/{work.id}/complete", {"outcome": "released"}
                await unless_ended(
                    connection.call("POST", path, Completed, json=body, patience_seconds=patience)
                )


async def _all_done(jobs: Iterable[JobRun], *, within: float | None = None) -> bool:
    """Wait for jobs; whether all of them are done in that time."""
    try:
        async with asyncio.timeout(within):
            for job in jobs:
                await job.wait()
    except TimeoutError:
        return False
    return True
