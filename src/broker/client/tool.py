"""A tool: a program that does work for a broker."""

import asyncio
import contextlib
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

from broker import schemas
from broker.client import running
from broker.client.connection import Connection, ProblemError, in_path
from broker.schemas import Completed, Heartbeat, RegisteredTool, Reported, WorkItems, plain

log = logging.getLogger(__name__)

_WAIT_SECONDS = 30.0
_MAX_ERROR_CHARS = 4_000


class FailedError(Exception):
    """Raised by a handler: the work has failed.

    Args:
        message: Why, for people.
        retry: Whether another attempt may do better.
    """

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class AsyncWork:
    """The work that an asynchronous handler does.

    Args:
        connection: The way to the broker.
        work: The work as it was answered.
    """

    def __init__(self, connection: Connection, work: schemas.Work) -> None:
        self._connection = connection
        self._work = work
        #: Whether somebody asks for the work to stop.
        self.cancelled = work.cancel_requested

    @property
    def id(self) -> UUID:
        """The work's id."""
        return self._work.id

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self._work.task_id

    @property
    def attempt(self) -> int:
        """Which attempt at the task this is, 1 at first."""
        return self._work.attempt

    @property
    def needs(self) -> Any:
        """What the task needs, as a Python value."""
        return plain(self._work.needs)

    @property
    def payload(self) -> Any:
        """What to work on, as a Python value."""
        return plain(self._work.payload)

    async def report(
        self, progress: float | None = None, message: str | None = None, data: Any = None
    ) -> None:
        """Report on the work.

        Args:
            progress: How much of it is done, 0 to 1.
            message: In words.
            data: Any JSON value.

        Raises:
            ProblemError: The work has ended meanwhile, or a value is refused.
        """
        body = {"id": uuid4(), "progress": progress, "message": message, "data": data}
        answer = await self._connection.call("POST", f"/v1/work/{self.id}/reports", Reported, json=body)
        self.cancelled = self.cancelled or answer.cancel_requested


class Work(AsyncWork):
    """The work that an ordinary function does, in a thread of its own; see `AsyncWork`."""

    def __init__(self, connection: Connection, work: schemas.Work) -> None:
        super().__init__(connection, work)
        self._loop = asyncio.get_running_loop()

    def report(  # type: ignore[override]
        self, progress: float | None = None, message: str | None = None, data: Any = None
    ) -> None:
        """Report on the work; see `AsyncWork.report`."""
        told = super().report(progress, message, data)
        asyncio.run_coroutine_threadsafe(told, self._loop).result()


Handler = Callable[[Any], Any]


class Tool:
    """A program that does work.

    Args:
        id: What it is called; the same after a restart.
        skills: What it can do; any JSON value that the assigner understands.
        capacity: How much work it takes at once.
        lease_seconds: Silent for longer, it is taken for dead.
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
    """

    def __init__(
        self,
        id: str,  # noqa: A002
        skills: Any,
        *,
        capacity: int = 1,
        lease_seconds: float = 60.0,
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
        self._lease_seconds = lease_seconds
        self._threads = ThreadPoolExecutor(capacity, thread_name_prefix=id)
        self._url = url
        self._key = key
        self._handler: Handler | None = None
        self._in_hand: dict[UUID, AsyncWork] = {}

    def handler(self, function: Handler) -> Handler:
        """Have a function do the work: it is given the work, and what it returns is the result.

        An ordinary function runs in a thread, an `async def` one in the loop. An exception means that the
        work has failed; `FailedError(..., retry=False)` that no other attempt is worth it.
        """
        self._handler = function
        return function

    def run(self) -> None:
        """Work until the process is told to stop (SIGTERM, Ctrl-C); then finish what is in hand."""
        running.run(self.work())

    async def work(self) -> None:
        """Register, and work until cancelled; then finish what is in hand.

        Raises:
            ProblemError: The broker refuses the registration.
        """
        if self._handler is None:
            raise RuntimeError("the tool has no handler: decorate a function with @tool.handler")
        async with Connection(self._url, key=self._key) as connection:
            registered = await connection.call("POST", "/v1/tools", RegisteredTool, json=self._registration)
            connection.use(registered.token)
            log.info("registered as %s at %s", self.id, connection.url)
            doing: set[asyncio.Task[None]] = set()
            beating = asyncio.create_task(self._beat(connection))
            try:
                while True:
                    for work in await self._assigned(connection):
                        task = asyncio.create_task(self._do(connection, work))
                        doing.add(task)
                        task.add_done_callback(doing.discard)
            finally:
                if doing:
                    await asyncio.wait(doing)
                beating.cancel()

    async def _assigned(self, connection: Connection) -> list[schemas.Work]:
        """The next work, started, so that it is not handed out again."""
        path, query = f"/v1/tools/{in_path(self.id)}/work", {"wait": _WAIT_SECONDS}
        found = await connection.call("GET", path, WorkItems, query=query, wait=_WAIT_SECONDS)
        return [
            work
            for work in found.items
            if (await self._unless_ended(connection.call("POST", f"/v1/work/{work.id}/start", schemas.Work)))
        ]

    async def _do(self, connection: Connection, work: schemas.Work) -> None:
        assert self._handler is not None  # noqa: S101 - work() has seen to it
        asynchronous = inspect.iscoroutinefunction(self._handler)
        handed = (AsyncWork if asynchronous else Work)(connection, work)
        self._in_hand[work.id] = handed
        completion: dict[str, Any]
        try:
            if asynchronous:
                result = await self._handler(handed)
            else:
                result = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._handler, handed
                )
            completion = {"outcome": "succeeded", "result": result}
        except FailedError as error:
            completion = {"outcome": "failed", "error": str(error)[-_MAX_ERROR_CHARS:], "retry": error.retry}
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its work's end, not the tool's
            log.warning("work %s failed: %r", work.id, error)
            text = "".join(traceback.format_exception(error))
            completion = {"outcome": "failed", "error": text[-_MAX_ERROR_CHARS:]}
        finally:
            del self._in_hand[work.id]
        path = f"/v1/work/{work.id}/complete"
        await self._unless_ended(connection.call("POST", path, Completed, json=completion))

    async def _beat(self, connection: Connection) -> None:
        """Renew the lease while handlers are busy, and hear what should stop."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            path = f"/v1/tools/{in_path(self.id)}/heartbeat"
            with contextlib.suppress(ProblemError):
                heard = await connection.call("POST", path, Heartbeat)
                for work_id in heard.cancel:
                    if work_id in self._in_hand:
                        self._in_hand[work_id].cancelled = True

    @staticmethod
    async def _unless_ended(call: Awaitable[Any]) -> Any:
        """The answer; None where the work has ended without us, which the broker has seen to."""
        try:
            return await call
        except ProblemError as error:
            if error.code not in ("work_ended", "work_not_found"):
                raise
            log.warning("work ended without us: %s", error.problem.detail)
            return None
