"""Remarks: find out why tasks wait, and which tasks need a new remark."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from broker.matching.candidates import ListedTool
from broker.matching.explanation import ToolsBySkills, explain
from broker.matching.matcher import Matcher
from broker.matching.needs import Needs, QueuedTask

# How many needs are checked at a time, and how many tasks get a remark at a time.
_MOST_CHECKED = 500
_MOST_REMARKS = 2_000
# How many of these remarks may replace another one. If another tool is now the nearest, that is no reason to
# write to a hundred thousand tasks at once.
_MOST_REPLACED = 200


class PendingRemark(NamedTuple):
    """A remark to add to a task."""

    task: QueuedTask
    text: str


class Remarks:
    """Finds out why tasks wait, and which tasks need a new remark.

    Needs are checked when none of their tasks has got a tool for a while, and then again from time to time.
    Each time at most 2,000 tasks get a remark, and 200 of these replace another one. The others follow the
    next time. A task gets no remark that it has already.

    Args:
        after_seconds: How long tasks wait before their needs are checked.
        recheck_seconds: How long to wait before checking the same needs again.
    """

    def __init__(self, matcher: Matcher, *, after_seconds: float, recheck_seconds: float) -> None:
        self._matcher = matcher
        self._after_seconds = after_seconds
        self._recheck_seconds = recheck_seconds
        # The skills of the registered tools and whether they accept work; and how often that has changed.
        self._tools: frozenset[tuple[str, bytes, str]] = frozenset()
        self._changes = 0

    def due(self) -> bool:
        """Return whether needs are due to be checked."""
        return next(self._due(), None) is not None

    def check(self, listed: Iterable[ListedTool]) -> Iterator[None]:
        """Check the needs that are due against all registered tools, in steps as long as one judgement."""
        tools = self._by_skills(listed)
        for needs in list(islice(self._due(), _MOST_CHECKED)):
            if needs.remark is None or needs.checked_for != self._changes:
                remark = yield from explain(needs, tools, self._matcher.judge)
                if needs not in self._matcher.waiting:
                    continue
                if remark != needs.remark:
                    needs.remark, needs.has_new_remarks = remark, True
            needs.checked_at, needs.checked_for = self._matcher.clock(), self._changes

    def new_remarks(self) -> list[PendingRemark]:
        """Return the remarks to add now."""
        remarks: list[PendingRemark] = []
        replaced = 0
        for needs in self._matcher.waiting:
            remark = needs.remark
            if remark is None or not needs.has_new_remarks:
                continue
            needs.has_new_remarks = False
            for task in needs.queue:
                if task.remark == remark.text or (remark.corrects and task.remark is None):
                    continue
                # Look again the next time: these may fail to be sent, and others are left.
                needs.has_new_remarks = True
                if len(remarks) == _MOST_REMARKS:
                    return remarks
                if task.remark is None or replaced < _MOST_REPLACED:
                    replaced += task.remark is not None
                    remarks.append(PendingRemark(task, remark.text))
        return remarks

    def _due(self) -> Iterator[Needs]:
        now = self._matcher.clock()
        for needs in self._matcher.waiting:
            if now - needs.unmatched_since < self._after_seconds or not needs.queue:
                continue
            if needs.checked_at is None or now - needs.checked_at >= self._recheck_seconds:
                yield needs

    def _by_skills(self, listed: Iterable[ListedTool]) -> ToolsBySkills:
        """Return the tools by their skills, and count a change unless tools only became busy or idle."""
        tools: ToolsBySkills = {}
        for tool in listed:
            tools.setdefault(self._matcher.skills.intern(bytes(tool.skills)), []).append(tool)
        self._matcher.set_registered(tools.keys())
        current = frozenset(
            (tool.id, skills.text, tool.state.replace("busy", "idle"))
            for skills, with_skills in tools.items()
            for tool in with_skills
        )
        if current != self._tools:
            self._tools = current
            self._changes += 1
        return tools
