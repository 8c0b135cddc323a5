"""What a program writes to stderr becomes reports on its work."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from broker.client import AsyncJob
from broker.programs.backlog import Backlog
from broker.programs.lines import Lines
from broker.schemas.limits import LONGEST_TEXT_CHARS

log = logging.getLogger(__name__)

_MOST_WAITING = 100
_LAST_LINES = 20


class Reports:
    """The reports on a piece of work, sent one after the other.

    The program is never held up: what the broker has no time for is joined, and in the end left out.

    Args:
        job: The job that the program does.
        echo: Is told every line, too, with the task's id; None: nobody is.
    """

    def __init__(self, job: AsyncJob, echo: Callable[[str], object] | None) -> None:
        self._job = job
        self._echo = echo
        self._lines = Lines(LONGEST_TEXT_CHARS)
        self._backlog = Backlog(_MOST_WAITING, LONGEST_TEXT_CHARS)
        self._news = asyncio.Event()
        self._all_said = False
        self._sending = asyncio.create_task(self._send_all(), name=f"reports on {job.id}")
        #: The last lines.
        self.last: deque[str] = deque(maxlen=_LAST_LINES)

    def feed(self, data: bytes) -> None:
        """Take in what the program has written."""
        self._add(self._lines.feed(data))

    async def finish(self) -> None:
        """Return when all is reported, or refused."""
        self._add(self._lines.end())
        self._all_said = True
        self._news.set()
        await self._sending
        if refused := self._job.reports_refused:
            log.warning("%s: %d reports were refused", self._job.task_id, refused)

    def stop(self) -> None:
        """Send no more."""
        self._sending.cancel()

    def _add(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        if self._echo is not None:
            self._echo("".join(f"{self._job.task_id}: {line}\n" for line in lines))
        self.last.extend(lines[-_LAST_LINES:])
        self._backlog.add(lines)
        self._news.set()

    async def _send_all(self) -> None:
        while self._backlog or not self._all_said:
            await self._news.wait()
            self._news.clear()
            while self._backlog:
                await self._send()

    async def _send(self) -> None:
        """Send the oldest that waits."""
        report = self._backlog.take()
        await self._job.report(report.progress, report.message)
        # Work whose program has ended is as good as done.
        if self._job.cancelled and not self._all_said:
            self._job.cancel()
