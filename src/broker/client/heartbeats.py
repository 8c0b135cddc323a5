"""Heartbeats: renew a tool's lease from a separate thread, even if a handler blocks the event loop."""

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

from broker.client.connection import Connection
from broker.client.errors import ProblemError
from broker.client.http_client import http_client
from broker.client.job import CALLER
from broker.client.retrying import retry_after
from broker.schemas.problems import Problem
from broker.schemas.tools import Heartbeat

log = logging.getLogger(__name__)

#: Error codes of a lost tool: another program has its id, its key was revoked, or it was deleted.
LOST = ("unauthenticated", "tool_not_found")

_PER_LEASE = 3
_FIRST_DELAY_SECONDS = 0.1
# The maximum duration of an attempt, and of the delay before the next one.
_LONGEST_SECONDS = 10.0
# An event loop that does not respond within this time is blocked.
_BLOCKED_SECONDS = 1.0
# How long to wait until the thread ends. It is a daemon, so the process can exit before it ends.
_END_SECONDS = 1.0
_CLIENT = Path(__file__).parent


class Heartbeats:
    """The heartbeats of a tool.

    They have their own thread and connection. The tool therefore keeps its lease even if a handler blocks the
    event loop or holds the interpreter for a while. If the broker does not respond, the tool sends at least
    three heartbeats in each lease. It sends none while the lease does not depend on heartbeats.

    Args:
        connection: The tool's connection, which knows the URL of the broker and reads its responses.
        token: The token of the tool.
        path: The path of the tool, like `/v1/tools/xrd-1`.
        lease_seconds: The lease of the tool.
        at_work: Returns the names of the running handlers. The thread calls it.
        is_needed: Returns True if the lease depends on heartbeats now. The thread calls it.
        cancel: Receives the ids of work that should stop. The event loop calls it.
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
        #: Raises a `ProblemError` when the tool is lost.
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        """Start sending heartbeats."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop sending heartbeats."""
        self._stopping.set()
        if not self.lost.cancel() and not self.lost.cancelled():
            self.lost.exception()  # otherwise asyncio logs that nobody has retrieved it
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
        """Send a heartbeat; return the number of seconds from its start to the next one."""
        began = time.monotonic()
        try:
            heartbeat, response = self._send(http)
        except Exception as error:  # noqa: BLE001 - the thread must send the next heartbeat after any error
            return self._failed(str(error) or repr(error), began)
        if isinstance(heartbeat, Problem):
            # A redirect to another origin removes the token. Such a response does not mean a lost tool.
            if heartbeat.code in LOST and "Authorization" in response.request.headers:
                self._stopping.set()
                self._in_loop(self._lose, ProblemError(heartbeat))
            trouble = f"{heartbeat.status} {heartbeat.code}: {heartbeat.detail}"
            return self._failed(trouble, began, retry_after(response.headers))
        if self._has_warned:
            log.warning("heartbeats reached the broker at %s again", self._url)
        self._has_warned, self._renewed_at, self._delay = False, time.monotonic(), _FIRST_DELAY_SECONDS
        if heartbeat.cancel:
            self._in_loop(self._cancel, heartbeat.cancel)
        return self._interval

    def _send(self, http: httpx.Client) -> tuple[Heartbeat | Problem, httpx.Response]:
        """Send a heartbeat; return the decoded response and the HTTP response."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = http.build_request("POST", self._path, headers=headers, timeout=self._timeout)
        response, redirects = http.send(request), 0
        while (following := self._response_reader.next_request(request, response, redirects)) is not None:
            response, redirects = http.send(following), redirects + 1
        return self._response_reader.read(request, response, Heartbeat), response

    def _failed(self, trouble: str, began: float, at_least: float = 0.0) -> float:
        """Return the number of seconds to the next heartbeat after one that failed.

        The next one comes before the lease expires, even if the broker asks for a longer delay.
        """
        silent = time.monotonic() - self._renewed_at
        if silent > self._lease_seconds / 2 and not self._has_warned:
            log.warning(
                "no heartbeat reached the broker at %s for %.0f s of a lease of %.0f s: %s",
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
        """Log the handler that blocks the event loop, once for each time that it is blocked."""
        responded = threading.Event()
        self._in_loop(responded.set)
        was_blocked, self._is_blocked = self._is_blocked, not responded.wait(_BLOCKED_SECONDS)
        if self._is_blocked and not was_blocked and not self._stopping.is_set():
            log.warning(
                "%s blocks the event loop, so no other job of this tool can continue or report. Await slow"
                " operations, or make the handler an ordinary function, which runs in its own thread.",
                _blocker(self._loop_thread),
            )

    def _warn_of_standstill(self, seconds: float) -> None:
        log.warning(
            "this process did not run for %.1f s: a handler held the interpreter lock (GIL), or the machine"
            " slept. Running: %s.",
            seconds,
            ", ".join(self._at_work()) or "no job",
        )


def _blocker(thread: int) -> str:
    """Return the name of the handler that the event loop's thread runs, with its current line."""
    stack = traceback.extract_stack(sys._current_frames().get(thread))
    of_client = [at for at, frame in enumerate(stack) if Path(frame.filename).parent == _CLIENT]
    # `job.py` calls the handler, which may call other parts of the client.
    handler = next((at + 1 for at in of_client if stack[at].name == CALLER), 0)
    where = f"{stack[-1].filename}, line {stack[-1].lineno}: {stack[-1].line}"
    name = f"the handler {stack[handler].name}" if 0 < handler < len(stack) else "something"
    return f"{name} ({where})"
