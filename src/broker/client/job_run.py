"""Run a job: start its work, call the handler, and complete the work, even if the handler fails."""

import asyncio
import contextlib
import contextvars
import inspect
import logging
import math
import threading
import traceback
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec import Raw

from broker.client import sanitizing, tracing
from broker.client.completions import Completions
from broker.client.connection import Connection
from broker.client.encoding import encoded
from broker.client.errors import ProblemError, ProxyLimitError, explained
from broker.client.job import NOT_OURS, AsyncJob, FailedError, Job, StoppedError
from broker.client.work_source import WorkSource
from broker.schemas.work import Work, WorkStatus

log = logging.getLogger(__name__)

Handler = Callable[[Any], Any]

_MAX_ERROR_CHARS = 4_000
# Shorter lengths of an error to send if the broker refuses the full length. The last one is the smallest
# limit that a broker can have.
_SHORTER_CHARS = (500, 16)
_WAIT_SECONDS = 30.0
# The client requests the status of a job only if the job runs longer than this.
_WATCH_AFTER_SECONDS = 1.0
# The response to a report says whether the job should stop, so a recent one replaces a status request.
_QUIET_SECONDS = 1.0
# The largest needs, payload and result together of work whose completion waits for the next work.
_MOST_RECORD_BYTES = 2**14
# With these statuses the broker refuses the content of a completion. It would refuse a repetition, too.
_REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
# These attempts take 15 s. Somebody may increase the proxy's limit in that time.
_MOST_PROXY_REFUSALS = 5
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class JobRun:
    """The run of one job, from its start to its completion."""

    def __init__(
        self,
        connection: Connection,
        completions: Completions,
        source: WorkSource,
        handler: Handler,
        work: Work,
    ) -> None:
        self._connection = connection
        self._completions = completions
        self._source = source
        self._work = work
        self._handler = handler
        self._path = f"/v1/work/{work.id}"
        self._job = (AsyncJob if _is_asynchronous(handler) else Job)(connection, work)
        self._stopped_as = "cancelled"
        self._is_started = False
        self._completion: dict[str, Any] | None = None
        self._watching: asyncio.Task[None] | None = None
        #: The id of the task.
        self.task_id = work.task_id
        #: Set when the broker has started the work or refused to start it.
        self.begun = asyncio.Event()
        #: Done when the work is completed. It raises nothing, because the run logs its errors.
        self.task = asyncio.create_task(self._run(), name=self._path)

    @property
    def is_running(self) -> bool:
        """True until the handler has ended."""
        return self._completion is None

    def cancel(self) -> None:
        """Ask the handler to stop, because somebody cancelled the work or the broker ended it."""
        self._job.cancel()

    def release(self) -> None:
        """Ask the handler to stop, and release the work."""
        self._stopped_as = "released"
        self._job.cancel()

    def abandon(self) -> None:
        """Stop waiting for the handler."""
        self.task.cancel()

    async def _run(self) -> None:
        try:
            await self._start_and_finish()
        except Exception as error:
            log.exception("task %s: an error in the client ended its work %s", self.task_id, self._job.id)
            if self._is_started:
                # The handler's result exists even if the first attempt to send it failed.
                completion = self._completion or _failed(f"an error in the client ended the work: {error!r}")
                with contextlib.suppress(Exception):  # logged above
                    await self._complete(completion)

    async def _start_and_finish(self) -> None:
        try:
            path, on_headers = f"{self._path}/start", self._job.set_trace_context
            started = await unless_ended(self._connection.call("POST", path, Work, on_headers=on_headers))
        finally:
            self.begun.set()
        if started is None:
            return
        self._is_started = True
        # A timer costs less than a task, and most jobs end before the client would read their status.
        timer = self.task.get_loop().call_later(_WATCH_AFTER_SECONDS, self._start_watching)
        with tracing.working(started, self._job.trace_context):
            try:
                self._completion = await self._outcome()
            finally:
                timer.cancel()
                if self._watching is not None:
                    self._watching.cancel()
            tracing.ended(self._completion)
            if not await self._complete_and_wait(self._completion):
                await self._complete(self._completion)

    async def _complete_and_wait(self, completion: dict[str, Any]) -> bool:
        """Complete the work and wait for the next work, if that saves a request.

        The response contains the whole archive record, so the record must be small. A span of the job must
        not last until there is other work.

        Returns:
            True if the work is completed.
        """
        size = sum(map(len, (self._work.needs, self._work.payload, completion.get("result", b""))))
        is_small = size < _MOST_RECORD_BYTES and self._job.reported_at == -math.inf
        if not is_small or tracing.current():
            return False
        return await self._source.complete_and_wait(self._job.id, completion)

    async def _outcome(self) -> dict[str, Any]:
        """Call the handler and return the completion."""
        job = self._job
        try:
            job.stop_if_cancelled()
            if isinstance(job, Job):
                result = await _in_thread(self._handler, job)
                if inspect.isawaitable(result):
                    result = _encoded(job, await job.run(result))
            else:
                result = _encoded(job, await job.run(self._handler(job)))
        except (StoppedError, asyncio.CancelledError) as error:
            if job.cancelled:
                return {"outcome": self._stopped_as}
            return _failed(f"the handler stopped, but it was not asked to stop: {error!r}")
        except FailedError as error:
            return _failed(str(error), retry=error.retry)
        except Exception as error:  # noqa: BLE001 - any error of a handler ends its work, but not the tool
            tracing.raised(error)
            log.warning("task %s failed: %r", job.task_id, error)
            text = "".join(traceback.format_exception(error.with_traceback(_without_client(error))))
            return _failed(text)
        return {"outcome": "succeeded", "result": result}

    async def _complete(self, completion: dict[str, Any]) -> None:
        """Complete the work, and retry until the broker accepts the completion.

        If the broker refuses the result, or if it stays too large for a proxy, the work fails without a retry
        of the task. Any other refusal may be temporary, for example a key that lacks the role.
        """
        complete, id_, task_id = self._completions.complete, self._job.id, self.task_id
        pause, shorter = _FIRST_PAUSE_SECONDS, iter(_SHORTER_CHARS)
        refusals_of_a_proxy, logged = 0, ""
        while True:
            try:
                status = await unless_ended(complete(id_, completion))
                break
            except ProblemError as error:
                if explained(error) != logged:
                    logged = explained(error)
                    log.warning("task %s: its completion was refused: %s", task_id, logged)
                is_of_a_proxy = isinstance(error, ProxyLimitError)
                refusals_of_a_proxy += is_of_a_proxy
                is_final = not is_of_a_proxy or refusals_of_a_proxy >= _MOST_PROXY_REFUSALS
                if is_final and error.problem.status in _REFUSALS and (longest := next(shorter, 0)):
                    reason = completion.get("error") or _refusal(completion, error)
                    completion = _failed(reason, retry=completion.get("retry", False), longest=longest)
                    continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if status not in ("archived", "exists", None):
            log.warning("task %s: its work had already ended before its completion (%s)", task_id, status)

    def _start_watching(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Ask the handler to stop when somebody cancels the work or the broker ends it."""
        loop, version, pause = asyncio.get_running_loop(), None, 0.0
        while True:
            await asyncio.sleep(pause)
            pause = _WATCH_AFTER_SECONDS
            if loop.time() - self._job.reported_at < _QUIET_SECONDS:
                continue
            wait = 0.0 if version is None else _WAIT_SECONDS
            query = {"wait": wait, "after_version": version}
            call = self._connection.call
            try:
                work = await call("GET", self._path, WorkStatus, query=query, wait=wait, is_minimal=True)
            except ProblemError as error:
                if error.code in NOT_OURS:
                    self._stop_handler(error.problem.detail)
                    return
                log.warning("task %s: the status of its work could not be read: %s", self.task_id, error)
                continue
            version = work.version
            if work.state != "running":
                self._stop_handler(f"its work has ended ({work.state})")
                return
            if work.cancel_requested:
                self._stop_handler("its work was cancelled")
                return

    def _stop_handler(self, reason: str) -> None:
        log.warning("task %s: asked the handler to stop, reason: %s", self.task_id, reason)
        self.cancel()


def _without_client(error: BaseException) -> TracebackType | None:
    """Return the traceback of an error, without the frames of the client above the handler."""
    trace, client = error.__traceback__, Path(__file__).parent
    while trace and trace.tb_next and Path(trace.tb_frame.f_code.co_filename).parent == client:
        trace = trace.tb_next
    return trace


def _failed(error: str, *, retry: bool = True, longest: int = _MAX_ERROR_CHARS) -> dict[str, Any]:
    """Return the completion of failed work. It keeps the end of a long error, which names the cause."""
    return {"outcome": "failed", "error": sanitizing.text(error)[-longest:], "retry": retry}


def _refusal(completion: dict[str, Any], error: ProblemError) -> str:
    """Return the reason why the broker does not accept the result of a completion."""
    reason = f"the broker did not accept the result: {explained(error)}"
    if error.code == "payload_too_large":
        reason += f" The result has {len(bytes(completion.get('result') or b'')):,} bytes."
    return reason


def _encoded(job: AsyncJob, result: Any) -> Raw:
    """Return the result of a job as JSON.

    Raises:
        FailedError: The result has no JSON form. A retry of the task would return the same result.
    """
    try:
        return Raw(encoded(result))
    except Exception as error:
        log.warning("task %s: its result could not be encoded as JSON: %r", job.task_id, error)
        raise FailedError(f"the result could not be encoded as JSON: {error}", retry=False) from error


def _is_asynchronous(handler: Handler) -> bool:
    """Return whether a handler is an `async def` function or an object whose `__call__` is one."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - this inspects it
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


async def unless_ended(request: Awaitable[Any]) -> Any:
    """Return the response to a request about work, or None if the work no longer belongs to this program."""
    try:
        return await request
    except ProblemError as error:
        if error.code not in NOT_OURS:
            raise
        log.warning("the work no longer belongs to this tool: %s", error.problem.detail)
        return None


async def _in_thread(function: Handler, job: Job) -> Any:
    """Run an ordinary function in a daemon thread, which lets the process exit at any time.

    Returns:
        The result as JSON, encoded in that thread, or the awaitable that the function has returned.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        settled: tuple[Callable[[Any], None], Any]
        try:
            result = function(job)
            settled = future.set_result, result if inspect.isawaitable(result) else _encoded(job, result)
        except StopIteration as error:  # no future accepts it
            settled = future.set_exception, RuntimeError(repr(error))
        except Exception as error:  # noqa: BLE001 - the future raises it
            settled = future.set_exception, error
        except BaseException as error:  # noqa: BLE001 - a handler that exits ends its work, but not the tool
            settled = future.set_exception, FailedError(f"the handler exited with {error!r}")
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits for the result
            loop.call_soon_threadsafe(settle, *settled)

    # Context variables, such as the current span, keep their values in the thread.
    run_here = contextvars.copy_context().run
    threading.Thread(target=run_here, args=(run,), name=f"work {job.id}", daemon=True).start()
    return await future
