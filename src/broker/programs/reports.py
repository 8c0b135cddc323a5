"""Send what a program writes to stderr as reports."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from broker.client import AsyncJob
from broker.programs.line_splitter import LineSplitter
from broker.programs.pending_reports import PendingReports
from broker.schemas.limits import LONGEST_TEXT_CHARS

log = logging.getLogger(__name__)

_MOST_WAITING = 100
_LAST_LINES = 20


class Reports:
    """The reports of a job, sent one after the other.

    They never block the program. If the broker is too slow, lines are joined, and in the end dropped.

    Args:
        job: The job that the program does.
        echo: Called with every line, too, which has the id of the task; None: not called.
    """

    def __init__(self, job: AsyncJob, echo: Callable[[str], object] | None) -> None:
        self._job = job
        self._echo = echo
        self._line_splitter = LineSplitter(LONGEST_TEXT_CHARS)
        self._pending = PendingReports(_MOST_WAITING, LONGEST_TEXT_CHARS)
        self._news = asyncio.Event()
        self._is_finished = False
        self._sending = asyncio.create_task(self._send_all(), name=f"reports on {job.id}")
        #: The last lines that the program wrote.
        self.last: deque[str] = deque(maxlen=_LAST_LINES)

    def feed(self, data: bytes) -> None:
        """Add what the program has written."""
        self._add(self._line_splitter.feed(data))

    async def finish(self) -> None:
        """Wait until everything is reported or refused."""
        self._add(self._line_splitter.end())
        self._is_finished = True
        self._news.set()
        await self._sending
        if refused := self._job.reports_refused:
            log.warning("%s: %d reports were refused", self._job.task_id, refused)

    def stop(self) -> None:
        """Stop sending."""
        self._sending.cancel()

    def _add(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        if self._echo is not None:
            self._echo("".join(f"{self._job.task_id}: {line}\n" for line in lines))
        self.last.extend(lines[-_LAST_LINES:])
        self._pending.add(lines)
        self._news.set()

    async def _send_all(self) -> None:
        while self._pending or not self._is_finished:
            await self._news.wait()
            self._news.clear()
            while self._pending:
                report = self._pending.pop()
                await self._job.report(report.progress, report.message)
                # If the program has ended, its job is as good as done.
                if self._job.cancelled and not self._is_finished:
                    self._job.cancel()
