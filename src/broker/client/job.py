"""A piece of work in a tool's hands: from its start to its completion, whatever the handler does."""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import threading
import traceback
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec import Raw

from broker.client import cleaning, tracing
from broker.client.completions import Completions
from broker.client.connection import Connection
from broker.client.encoding import encoded
from broker.client.errors import ProblemError, ProxyLimitError, explained
from broker.client.work import NOT_OURS, AsyncWork, FailedError, StoppedError, Work
from broker.schemas import work as schemas
from broker.schemas.work import WorkStatus

log = logging.getLogger(__name__)

Handler = Callable[[Any], Any]

_MAX_ERROR_CHARS = 4_000
# How much of an error to send if the broker refuses it at full length. The last is the smallest limit that
# a broker can have.
_SHORTER_CHARS = (500, 16)
_WAIT_SECONDS = 30.0
# What is done sooner is not worth asking whether it should stop.
_WATCH_AFTER_SECONDS = 1.0
# A report is told whether the work should stop; what reports more often than that need not ask.
_QUIET_SECONDS = 1.0
# The broker refuses the completion itself with these: it would refuse a repetition, too.
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
# Finished work is worth some more requests, over 15 s: somebody may just be configuring the proxy.
_MOST_PROXY_REFUSALS = 5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class Job:
    """A piece of work in hand.

    Args:
        connection: The way to the broker.
        completions: The way back, shared by all jobs.
        work: The work as it was answered.
        handler: Does it.
    """

    def __init__(
        self, connection: Connection, completions: Completions, work: schemas.Work, handler: Handler
    ) -> None:
        self._connection = connection
        self._completions = completions
        self._handler = handler
        self._path = f"/v1/work/{work.id}"
        self._handed = (AsyncWork if _is_asynchronous(handler) else Work)(connection, work)
        self._stopped_as = "cancelled"
        self._is_started = False
        self._completion: dict[str, Any] | None = None
        #: Set when the broker knows that it has begun, or that it never will.
        self.begun = asyncio.Event()
        #: Done when it is completed.
        self.task = asyncio.create_task(self._run(), name=f"work {work.id}")

    @property
    def task_id(self) -> str:
        """The id of its task."""
        return self._handed.task_id

    def cancel(self) -> None:
        """Have the handler stop, because somebody asks for it or the work has ended without us."""
        self._handed.cancel()

    def release(self) -> None:
        """Have the handler stop, to give the work back."""
        self._stopped_as = "released"
        self._handed.cancel()

    def abandon(self) -> None:
        """Wait for the handler no longer."""
        self.task.cancel()

    def done_then(self, do: Callable[[], object]) -> None:
        """Do something when it is completed."""
        self.task.add_done_callback(lambda _: do())

    async def wait(self) -> None:
        """Return when it is completed; what went wrong has been told."""
        await asyncio.wait([self.task])

    async def _run(self) -> None:
        try:
            await self._do()
        except Exception as error:
            log.exception("work %s is given up", self._handed.id)
            if self._is_started:
                # What the handler came to is not lost because it could not be sent the first time.
                completion = self._completion or _failed(f"the tool's client has failed: {error!r}")
                with contextlib.suppress(Exception):  # logged above
                    await self._complete(completion)

    async def _do(self) -> None:
        try:
            path, heard = f"{self._path}/start", self._handed.in_trace
            started = await unless_ended(self._connection.call("POST", path, schemas.Work, heard=heard))
        finally:
            self.begun.set()
        if started is None:
            return
        self._is_started = True
        watching = asyncio.create_task(self._watch())
        with tracing.working(self._handed):
            try:
                self._completion = await self._outcome()
            finally:
                watching.cancel()
            tracing.ended(self._completion)
            await self._complete(self._completion)

    async def _outcome(self) -> dict[str, Any]:
        """What the handler comes to."""
        handed = self._handed
        try:
            handed.stop_if_cancelled()
            if isinstance(handed, Work):
                result = await _in_thread(self._handler, handed)
                if inspect.isawaitable(result):
                    result = _encoded(handed, await handed.run(result))
            else:
                result = _encoded(handed, await handed.run(self._handler(handed)))
        except (StoppedError, asyncio.CancelledError) as error:
            if handed.cancelled:
                return {"outcome": self._stopped_as}
            return _failed(f"the handler stopped by itself: {error!r}")
        except FailedError as error:
            return _failed(str(error), retry=error.retry)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its work's end, not the tool's
            tracing.raised(error)
            log.warning("task %s failed: %r", handed.task_id, error)
            text = "".join(traceback.format_exception(error.with_traceback(_without_us(error))))
            return _failed(text)
        return {"outcome": "succeeded", "result": result}

    async def _complete(self, completion: dict[str, Any]) -> None:
        """Complete the work, whatever it takes: else the task would stay running, and the tool without room.

        A result that the broker refuses is a failure that no other attempt can mend. So is one that stays too
        large for a proxy. What may pass, such as a key that lacks a role just now, is waited out.
        """
        complete, id_, task_id = self._completions.complete, self._handed.id, self._handed.task_id
        pause, shorter = _FIRST_PAUSE_SECONDS, iter(_SHORTER_CHARS)
        refusals_of_a_proxy, logged = 0, ""
        while True:
            try:
                status = await unless_ended(complete(id_, completion))
                break
            except ProblemError as error:
                if explained(error) != logged:
                    logged = explained(error)
                    log.warning("task %s: its completion is refused: %s", task_id, logged)
                is_of_a_proxy = isinstance(error, ProxyLimitError)
                refusals_of_a_proxy += is_of_a_proxy
                is_final = not is_of_a_proxy or refusals_of_a_proxy >= _MOST_PROXY_REFUSALS
                if is_final and error.problem.status in _REFUSALS and (longest := next(shorter, 0)):
                    why = completion.get("error") or _refusal(completion, error)
                    completion = _failed(why, retry=completion.get("retry", False), longest=longest)
                    continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if status not in ("archived", "exists", None):
            log.warning("task %s: it had ended without us (%s)", task_id, status)

    async def _watch(self) -> None:
        """Have the handler stop when somebody asks for that, or its work ends without it."""
        loop, version = asyncio.get_running_loop(), None
        while True:
            await asyncio.sleep(_WATCH_AFTER_SECONDS)
            if loop.time() - self._handed.reported_at < _QUIET_SECONDS:
                continue
            wait = 0.0 if version is None else _WAIT_SECONDS
            query = {"wait": wait, "after_version": version}
            call = self._connection.call
            try:
                work = await call("GET", self._path, WorkStatus, query=query, wait=wait, is_minimal=True)
            except ProblemError as error:
                if error.code in NOT_OURS:
                    told = error.problem.detail
                    log.warning("task %s: %s; its handler is asked to stop", self.task_id, told)
                    self.cancel()
                    return
                log.warning("work %s cannot be watched: %s", self._handed.id, error)
                continue
            version = work.version
            if work.cancel_requested or work.state != "running":
                why = "it is to be cancelled" if work.state == "running" else f"it has ended: {work.state}"
                log.warning("task %s: %s; its handler is asked to stop", self.task_id, why)
                self.cancel()
                return


def _without_us(error: BaseException) -> TracebackType | None:
    """Where an error came from, without the client's part of the way there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    return trace


def _is_ours(trace: TracebackType) -> bool:
    return Path(trace.tb_frame.f_code.co_filename).parent == Path(__file__).parent


def _failed(error: str, *, retry: bool = True, longest: int = _MAX_ERROR_CHARS) -> dict[str, Any]:
    """Return the completion of failed work, with the end of its error, which names the cause."""
    return {"outcome": "failed", "error": cleaning.text(error)[-longest:], "retry": retry}


def _refusal(completion: dict[str, Any], error: ProblemError) -> str:
    """Return why the result of a completion cannot be taken."""
    why = f"the result cannot be taken: {explained(error)}"
    if error.code == "payload_too_large":
        why += f" The result has {len(bytes(completion.get('result') or b'')):,} bytes."
    return why


def _encoded(handed: AsyncWork, result: Any) -> Raw:
    """Encode the result of work.

    Raises:
        FailedError: It is no JSON; another attempt would compute the same.
    """
    try:
        return Raw(encoded(result))
    except Exception as error:
        log.warning("task %s: its result cannot be taken: %r", handed.task_id, error)
        raise FailedError(f"the result cannot be taken: {error}", retry=False) from error


def _is_asynchronous(handler: Handler) -> bool:
    """Return whether a handler is an `async def`, or an object that is called as one."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - what it is, not whether it is there
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


async def unless_ended(call: Awaitable[Any]) -> Any:
    """The answer; None where the work has ended without us, which the broker has seen to."""
    try:
        return await call
    except ProblemError as error:
        if error.code not in NOT_OURS:
            raise
        log.warning("work ended without us: %s", error.problem.detail)
        return None


async def _in_thread(function: Handler, handed: Work) -> Any:
    """Run an ordinary function in a thread of its own, which does not keep the process from ending.

    Returns:
        Its result as JSON, encoded in that thread; or the awaitable that it has returned.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = function(handed)
            result = result if inspect.isawaitable(result) else _encoded(handed, result)
        except Exception as raised:  # noqa: BLE001 - it is told to whoever waits
            error = RuntimeError(repr(raised)) if isinstance(raised, StopIteration) else raised
        except BaseException as raised:  # noqa: BLE001 - a handler that exits ends its work, not the tool
            error = FailedError(f"the handler ended with {raised!r}")
        with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    # What is current here, such as a span, is so there.
    run_here = contextvars.copy_context().run
    threading.Thread(target=run_here, args=(run,), name=f"work {handed.id}", daemon=True).start()
    return await future
