"""Heartbeats: renew a tool's lease from a thread of its own, even if a handler blocks the event loop."""

import asyncio
import contextlib
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import httpx

from broker.client.connection import Connection, http_client
from broker.client.errors import ProblemError
from broker.client.job import CALLER
from broker.client.retrying import retry_after
from broker.schemas.problems import Problem
from broker.schemas.tools import Heartbeat

log = logging.getLogger(__name__)

#: Error codes of a lost tool: another program has its id, its key was revoked, or it was deleted.
LOST = ("unauthenticated", "tool_not_found")

_PER_LEASE = 3
_FIRST_DELAY_SECONDS = 0.1
# The longest attempt, and the longest pause before the next one.
_LONGEST_SECONDS = 10.0
# An event loop that does not respond within this time is blocked.
_BLOCKED_SECONDS = 1.0
# How long to wait for the end of the thread, which does not keep the process from ending.
_END_SECONDS = 1.0
_CLIENT = Path(__file__).parent


class Heartbeats:
    """The heartbeats of a tool.

    They have their own thread and connection, so that the tool keeps its lease even if a handler blocks the
    event loop or holds the interpreter for a while. If the broker does not respond, the tool sends one at
    least every third of the lease. It sends none while nothing depends on the lease.

    Args:
        connection: The tool's connection, which has the URL of the broker and reads its responses.
        at_work: Returns the running handlers, for people; called in the thread.
        is_needed: Returns whether the lease depends on heartbeats now; called in the thread.
        cancel: Called in the event loop with the ids of the work that should stop.
    """

    def __init__(
        self,
        connection: Connection,
        token: str,
        path: str,
        lease_seconds: float,
        *,
        at_work: Callable[[], Sequence[str]],
        is_needed: Callable[[], bool],
        cancel: Callable[[Sequence[UUID]], object],
    ) -> None:
        self._url = connection.url
        self._response_reader = connection.response_reader
        self._token = token
        self._path = f"{path}/heartbeat"
        self._lease_seconds = lease_seconds
        self._interval = lease_seconds / _PER_LEASE
        self._longest = min(self._interval / 2, _LONGEST_SECONDS)
        self._timeout = min(self._interval, _LONGEST_SECONDS)
        self._at_work = at_work
        self._is_needed = is_needed
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker heartbeats", daemon=True)
        self._delay = _FIRST_DELAY_SECONDS
        self._renewed_at = time.monotonic()
        self._has_warned = self._is_blocked = False
        #: Raises the `ProblemError` of a lost tool.
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        """Start to send heartbeats."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop sending heartbeats."""
        self._stopping.set()
        if not self.lost.cancel() and not self.lost.cancelled():
            self.lost.exception()  # retrieved, so that asyncio does not log it
        await asyncio.to_thread(self._thread.join, _END_SECONDS)

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        with contextlib.ExitStack() as stack:
            http: httpx.Client | None = None
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                began = time.monotonic()
                if began - due > self._interval:
                    self._warn_of_standstill(began - due)
                if self._is_needed():
                    http = http or stack.enter_context(http_client(self._url, httpx.Client))
                    due = began + self._beat(http)
                    self._check_event_loop()
                else:
                    due, self._renewed_at = began + self._interval, began

    def _beat(self, http: httpx.Client) -> float:
        """Send a heartbeat; return the number of seconds from its beginning to the next one."""
        began = time.monotonic()
        try:
            heartbeat, response = self._send(http)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next heartbeat is due
            return self._failed(str(error) or repr(error), began)
        if isinstance(heartbeat, Problem):
            # A redirect to another origin removes the token. Then the tool is not lost.
            if heartbeat.code in LOST and "Authorization" in response.request.headers:
                self._stopping.set()
                self._in_loop(self._lose, ProblemError(heartbeat))
            trouble = f"{heartbeat.status} {heartbeat.code}: {heartbeat.detail}"
            return self._failed(trouble, began, retry_after(response))
        if self._has_warned:
            log.warning("heartbeats reach the broker at %s again", self._url)
        self._has_warned, self._renewed_at, self._delay = False, time.monotonic(), _FIRST_DELAY_SECONDS
        if heartbeat.cancel:
            self._in_loop(self._cancel, heartbeat.cancel)
        return self._interval

    def _send(self, http: httpx.Client) -> tuple[Heartbeat | Problem, httpx.Response]:
        """Send a heartbeat; return the decoded response, and the response itself."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = http.build_request("POST", self._path, headers=headers, timeout=self._timeout)
        response, redirects = http.send(request), 0
        while (following := self._response_reader.next_request(request, response, redirects)) is not None:
            response, redirects = http.send(following), redirects + 1
        return self._response_reader.read(request, response, Heartbeat), response

    def _failed(self, trouble: str, began: float, at_least: float = 0.0) -> float:
        """Return when to send the next one: before the lease expires, whatever the broker asks for."""
        silent = time.monotonic() - self._renewed_at
        if silent > self._lease_seconds / 2 and not self._has_warned:
            log.warning(
                "no heartbeat has reached the broker at %s for %.0f s of a lease of %.0f s: %s",
                self._url,
                silent,
                self._lease_seconds,
                trouble,
            )
            self._has_warned = True
        pause = min(at_least + self._delay * random.random(), self._longest)  # noqa: S311
        self._delay = min(2 * self._delay, self._longest)
        return min(time.monotonic() - began + pause, self._interval)

    def _lose(self, error: ProblemError) -> None:
        if not self.lost.done():
            self.lost.set_exception(error)

    def _in_loop(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(callback, *args)

    def _check_event_loop(self) -> None:
        """Log which handler blocks the event loop, once for each time."""
        responded = threading.Event()
        self._in_loop(responded.set)
        was_blocked, self._is_blocked = self._is_blocked, not responded.wait(_BLOCKED_SECONDS)
        if self._is_blocked and not was_blocked and not self._stopping.is_set():
            log.warning(
                "%s blocks the event loop: no other work goes on, and nothing is reported. Await what takes"
                " time, or make the handler an ordinary function, which runs in a thread of its own.",
                _blocker(self._loop_thread),
            )

    def _warn_of_standstill(self, seconds: float) -> None:
        log.warning(
            "this process stood still for %.1f s: a handler holds the interpreter (its GIL), or the machine"
            " slept. At work: %s.",
            seconds,
            ", ".join(self._at_work()) or "nothing",
        )


def _blocker(thread: int) -> str:
    """Return which handler the event loop's thread is in, and the line at which it is."""
    stack = traceback.extract_stack(sys._current_frames().get(thread))
    of_client = [at for at, frame in enumerate(stack) if Path(frame.filename).parent == _CLIENT]
    # `job.py` calls the handler, which may call other parts of the client.
    handler = next((at + 1 for at in of_client if stack[at].name == CALLER), 0)
    where = f"{stack[-1].filename}, line {stack[-1].lineno}: {stack[-1].line}"
    name = f"the handler {stack[handler].name}" if 0 < handler < len(stack) else "something"
    return f"{name} ({where})"
