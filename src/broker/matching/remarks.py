"""Remarks: which tasks are told why they wait, and when."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from broker.matching.explanation import Tools, explain
from broker.matching.kinds import Needs
from broker.matching.matcher import Matcher
from broker.matching.offers import RegisteredTool
from broker.matching.queue import WaitingTask

# At a time so many kinds are looked at, and so many tasks are told.
_LOOKED_AT = 500
_TOLD = 2_000
# So many of them are told something else than before: that another tool comes nearest, when a hundred
# thousand tasks wait for it, is no reason to write to each of them at once.
_TOLD_ANEW = 200


class Said(NamedTuple):
    """A remark on a task."""

    task: WaitingTask
    text: str


class Remarks:
    """Finds out why tasks wait, and whom to tell.

    A kind of needs is looked at when none of its tasks has got a tool for a while, and then again from time
    to time. Each time at most 2,000 tasks are told, 200 of them something else than before; the others
    follow the next time. Where nothing has changed, nobody is told anything.

    Args:
        matcher: What is known.
        after_seconds: So long a kind waits before it is looked at.
        recheck_seconds: So long it is left alone then.
    """

    def __init__(self, matcher: Matcher, *, after_seconds: float, recheck_seconds: float) -> None:
        self._matcher = matcher
        self._after_seconds = after_seconds
        self._recheck_seconds = recheck_seconds
        # What the registered tools have, and whether they take work; and how often that has changed.
        self._tools: frozenset[tuple[str, bytes, str]] = frozenset()
        self._changes = 0

    def due(self) -> bool:
        """Whether there are kinds that should be looked at."""
        return next(self._due(), None) is not None

    def look(self, registered: Iterable[RegisteredTool]) -> Iterator[None]:
        """Look at those that are due, with all the registered tools; a step is as long as a judgement."""
        tools = self._take_in(registered)
        for needs in list(islice(self._due(), _LOOKED_AT)):
            if needs.remark is None or needs.checked_for != self._changes:
                remark = yield from explain(needs, tools, self._matcher.judge)
                if needs not in self._matcher.waiting:
                    continue
                if remark != needs.remark:
                    needs.remark, needs.untold = remark, True
            needs.checked_at, needs.checked_for = self._matcher.clock(), self._changes

    def unsaid(self) -> list[Said]:
        """The remarks to make now."""
        found: list[Said] = []
        anew = 0
        for needs in self._matcher.waiting:
            remark = needs.remark
            if remark is None or not needs.untold:
                continue
            needs.untold = False
            for task in needs.queue:
                if task.told == remark.text or (remark.corrects and task.told is None):
                    continue
                # Looked at again the next time, for these may not be heard, and others are left.
                needs.untold = True
                if len(found) == _TOLD:
                    return found
                if task.told is None or anew < _TOLD_ANEW:
                    anew += task.told is not None
                    found.append(Said(task, remark.text))
        return found

    def _due(self) -> Iterator[Needs]:
        now = self._matcher.clock()
        for needs in self._matcher.waiting:
            if now - needs.unmatched_since < self._after_seconds or not needs.queue:
                continue
            if needs.checked_at is None or now - needs.checked_at >= self._recheck_seconds:
                yield needs

    def _take_in(self, registered: Iterable[RegisteredTool]) -> Tools:
        """The tools by their skills; that they are busy, or are no more, is no change."""
        tools: Tools = {}
        for tool in registered:
            tools.setdefault(self._matcher.skills.of(bytes(tool.skills)), []).append(tool)
        self._matcher.see(tools.keys())
        seen = frozenset(
            (tool.id, skills.text, tool.state.replace("busy", "idle"))
            for skills, some in tools.items()
            for tool in some
        )
        if seen != self._tools:
            self._tools = seen
            self._changes += 1
        return tools
