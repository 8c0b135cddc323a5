"""What a program writes to stderr becomes reports on its work."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from broker.client import AsyncWork, ProblemError
from broker.client.connection import explained
from broker.programs.backlog import Backlog
from broker.programs.lines import Lines

log = logging.getLogger(__name__)

# What the broker takes as a message, unless it is set otherwise.
_LONGEST = 10_000
_MOST_WAITING = 100
_LAST_LINES = 20
# That no report on this work will be taken any more; the last: there are too many.
_NO_MORE = ("work_ended", "work_not_found", "unauthenticated", "payload_too_large")


class Reports:
    """The reports on a piece of work, sent one after the other.

    The program is never held up: what the broker has no time for is joined, and in the end left out.

    Args:
        work: Which work.
        echo: Is told every line, too, with the task's id; None: nobody is.
    """

    def __init__(self, work: AsyncWork, echo: Callable[[str], object] | None) -> None:
        self._work = work
        self._echo = echo
        self._lines = Lines(_LONGEST)
        self._backlog = Backlog(_MOST_WAITING, _LONGEST)
        self._news = asyncio.Event()
        self._all_said = False
        self._refused = 0
        self._are_taken = True
        self._sending = asyncio.create_task(self._send_all(), name=f"reports on {work.id}")
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
        if self._refused:
            log.warning("%s: %d reports were refused", self._work.task_id, self._refused)

    def stop(self) -> None:
        """Send no more."""
        self._sending.cancel()

    def _add(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        if self._echo is not None:
            self._echo("".join(f"{self._work.task_id}: {line}\n" for line in lines))
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
        if not self._are_taken:
            self._refused += 1
            return
        try:
            await self._work.report(report.progress, report.message)
        except ProblemError as error:
            self._are_refused(error)
        # Work whose program has ended is as good as done.
        if self._work.cancelled and not self._all_said:
            self._work.cancel()

    def _are_refused(self, error: ProblemError) -> None:
        """See what a refusal means for the reports to come; the program goes on."""
        if not self._refused:
            log.warning("%s: a report was refused: %s", self._work.task_id, explained(error))
        self._refused += 1
        self._are_taken = error.code not in _NO_MORE
