"""Heartbeats: renew a tool's lease from a thread of its own, whatever its handlers do to the event loop."""

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

#: Codes that say that the tool is lost: another program has its id, its key was revoked, or it was deleted.
LOST = ("unauthenticated", "tool_not_found")

_PER_LEASE = 3
_FIRST_DELAY_SECONDS = 0.1
# An attempt takes no longer than this, nor does the pause before the next one.
_LONGEST_SECONDS = 10.0
# What the event loop does not answer within this is blocked.
_BLOCKED_SECONDS = 1.0
# How long the end of the thread is waited for; it does not keep the process from ending.
_END_SECONDS = 1.0
_CLIENT = Path(__file__).parent


class Heartbeats:
    """The heartbeats of a tool.

    They have a thread and a connection of their own, so that neither a handler that blocks the event loop nor
    one that now and then holds the interpreter costs the tool its lease. While the broker is away, one is
    sent at least every third of the lease. They are left out while nothing depends on them.

    Args:
        connection: The tool's connection, which has the URL of the broker and reads its responses.
        token: The tool's token.
        path: The path of the tool.
        lease_seconds: How long its lease lasts.
        at_work: Returns which handlers are at work, for people; it is called in the thread.
        is_needed: Returns whether the lease depends on heartbeats now; it is called in the thread.
        cancel: Is called in the event loop with the ids of the work that should stop.
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
        self._heard_at = time.monotonic()
        self._has_warned = self._is_blocked = False
        #: Fails with the `ProblemError` that says that the tool is lost.
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        """Begin to send them."""
        self._thread.start()

    async def stop(self) -> None:
        """Send no more."""
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
                    self._stood_still(began - due)
                if self._is_needed():
                    http = http or stack.enter_context(http_client(self._url, httpx.Client))
                    due = began + self._beat(http)
                    self._see_whether_the_loop_runs()
                else:
                    due, self._heard_at = began + self._interval, began

    def _beat(self, http: httpx.Client) -> float:
        """Send one; return after how many seconds from now the next one is due."""
        began = time.monotonic()
        try:
            heard, response = self._sent(http)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next one is due
            return self._failed(str(error) or repr(error), began)
        if isinstance(heard, Problem):
            # A redirect to another origin takes the token away, which is then no reason to end.
            if heard.code in LOST and "Authorization" in response.request.headers:
                self._stopping.set()
                self._in_loop(self._lose, ProblemError(heard))
            return self._failed(f"{heard.status} {heard.code}: {heard.detail}", began, retry_after(response))
        if self._has_warned:
            log.warning("heartbeats reach the broker at %s again", self._url)
        self._has_warned, self._heard_at, self._delay = False, time.monotonic(), _FIRST_DELAY_SECONDS
        if heard.cancel:
            self._in_loop(self._cancel, heard.cancel)
        return self._interval

    def _sent(self, http: httpx.Client) -> tuple[Heartbeat | Problem, httpx.Response]:
        """Send one; return what the broker responds, and the response itself."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = http.build_request("POST", self._path, headers=headers, timeout=self._timeout)
        response, redirects = http.send(request), 0
        while (following := self._response_reader.next_request(request, response, redirects)) is not None:
            response, redirects = http.send(following), redirects + 1
        return self._response_reader.read(request, response, Heartbeat), response

    def _failed(self, trouble: str, began: float, at_least: float = 0.0) -> float:
        """Return when to try again: before the lease suffers, whatever the broker asks for."""
        silent = time.monotonic() - self._heard_at
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

    def _in_loop(self, do: Callable[..., object], *given: object) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(do, *given)

    def _see_whether_the_loop_runs(self) -> None:
        """Log which handler blocks the event loop, once for each time."""
        answered = threading.Event()
        self._in_loop(answered.set)
        was_blocked, self._is_blocked = self._is_blocked, not answered.wait(_BLOCKED_SECONDS)
        if self._is_blocked and not was_blocked and not self._stopping.is_set():
            log.warning(
                "%s blocks the event loop: no other work goes on, and nothing is reported. Await what takes"
                " time, or make the handler an ordinary function, which runs in a thread of its own.",
                _blocker(self._loop_thread),
            )

    def _stood_still(self, seconds: float) -> None:
        log.warning(
            "this process stood still for %.1f s: a handler holds the interpreter (its GIL), or the machine"
            " slept. At work: %s.",
            seconds,
            ", ".join(self._at_work()) or "nothing",
        )


def _blocker(thread: int) -> str:
    """Return which handler the event loop's thread is in, and the line at which it is."""
    stack = traceback.extract_stack(sys._current_frames().get(thread))
    ours = [at for at, frame in enumerate(stack) if Path(frame.filename).parent == _CLIENT]
    # A handler is called by `job.py`; it may call the client itself further on.
    handler = next((at + 1 for at in ours if stack[at].name == CALLER), 0)
    where = f"{stack[-1].filename}, line {stack[-1].lineno}: {stack[-1].line}"
    name = f"the handler {stack[handler].name}" if 0 < handler < len(stack) else "something"
    return f"{name} ({where})"
