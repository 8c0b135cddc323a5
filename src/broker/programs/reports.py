"""Send the lines that a program writes to stderr as reports."""

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
    """Sends the reports of a job one by one.

    They never block the program. If the broker is too slow, this class joins lines, and later drops some.

    Args:
        job: The job that the program does.
        echo: Also called with each line, after the id of the task; None for no call.
    """

    def __init__(self, job: AsyncJob, echo: Callable[[str], object] | None) -> None:
        self._job = job
        self._echo = echo
        self._line_splitter = LineSplitter(LONGEST_TEXT_CHARS)
        self._pending = PendingReports(_MOST_WAITING, LONGEST_TEXT_CHARS)
        self._changed = asyncio.Event()
        self._is_finished = False
        self._sending = asyncio.create_task(self._send_all(), name=f"reports on {job.id}")
        #: The last lines that the program wrote.
        self.last: deque[str] = deque(maxlen=_LAST_LINES)

    def feed(self, data: bytes) -> None:
        """Add bytes that the program wrote."""
        self._add(self._line_splitter.feed(data))

    async def finish(self) -> None:
        """Wait until the broker has accepted or refused all reports."""
        self._add(self._line_splitter.end())
        self._is_finished = True
        self._changed.set()
        await self._sending
        if refused := self._job.reports_refused:
            log.warning("%s: the broker refused %d reports", self._job.task_id, refused)

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
        self._changed.set()

    async def _send_all(self) -> None:
        while self._pending or not self._is_finished:
            await self._changed.wait()
            self._changed.clear()
            while self._pending:
                report = self._pending.pop()
                await self._job.report(report.progress, report.message)
                # If the program has ended, it is too late to cancel the job.
                if self._job.cancelled and not self._is_finished:
                    self._job.cancel()
