"""Remarks: find the reasons why tasks wait, and the tasks that need a new remark."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from broker.matching.candidates import ListedTool
from broker.matching.explanation import ToolsBySkills, explain
from broker.matching.matcher import Matcher
from broker.matching.needs import Needs, QueuedTask

# The maximum numbers of needs that are checked at a time, and of tasks that get a remark at a time.
_MOST_CHECKED = 500
_MOST_REMARKS = 2_000
# The maximum number of these remarks that replace another one. When the closest match changes, this limit
# avoids a write to a hundred thousand tasks at once.
_MOST_REPLACED = 200


class PendingRemark(NamedTuple):
    """A remark to add to a task."""

    task: QueuedTask
    text: str


class Remarks:
    """Finds the reasons why tasks wait, and the tasks that need a new remark.

    It checks needs when none of their tasks was assigned for `after_seconds`, and later every
    `recheck_seconds`. At most 2,000 tasks get a remark at a time, and at most 200 of these remarks replace
    another one. The other tasks follow the next time. A task never gets a remark that it already has.

    Args:
        matcher: The matcher, which holds the waiting tasks.
        after_seconds: The minimum time that tasks wait before their needs are checked.
        recheck_seconds: The minimum time between two checks of the same needs.
    """

    def __init__(self, matcher: Matcher, *, after_seconds: float, recheck_seconds: float) -> None:
        self._matcher = matcher
        self._after_seconds = after_seconds
        self._recheck_seconds = recheck_seconds
        # The registered tools with their skills and states, and the number of changes to them so far.
        self._tools: frozenset[tuple[str, bytes, str]] = frozenset()
        self._changes = 0

    def due(self) -> bool:
        """Return whether any needs are due for a check."""
        return next(self._due(), None) is not None

    def check(self, listed: Iterable[ListedTool]) -> Iterator[None]:
        """Check the needs that are due against all registered tools. Yield after each judgement."""
        tools = self._by_skills(listed)
        for needs in list(islice(self._due(), _MOST_CHECKED)):
            if needs.reason is None or needs.checked_for != self._changes:
                reason = yield from explain(needs, tools, self._matcher.judge)
                if needs not in self._matcher.waiting:
                    continue
                if reason != needs.reason:
                    needs.reason, needs.has_new_remarks = reason, True
            needs.checked_at, needs.checked_for = self._matcher.clock(), self._changes

    def new_remarks(self) -> list[PendingRemark]:
        """Return the remarks to send now."""
        remarks: list[PendingRemark] = []
        replaced = 0
        for needs in self._matcher.waiting:
            reason = needs.reason
            if reason is None or not needs.has_new_remarks:
                continue
            needs.has_new_remarks = False
            for task in needs.queue:
                if task.remark == reason.text or (reason.corrects and task.remark is None):
                    continue
                # Check these needs again the next time, in case a remark is not sent or tasks are left.
                needs.has_new_remarks = True
                if len(remarks) == _MOST_REMARKS:
                    return remarks
                if task.remark is None or replaced < _MOST_REPLACED:
                    replaced += task.remark is not None
                    remarks.append(PendingRemark(task, reason.text))
        return remarks

    def _due(self) -> Iterator[Needs]:
        now = self._matcher.clock()
        for needs in self._matcher.waiting:
            if now - needs.unmatched_since < self._after_seconds or not needs.queue:
                continue
            if needs.checked_at is None or now - needs.checked_at >= self._recheck_seconds:
                yield needs

    def _by_skills(self, listed: Iterable[ListedTool]) -> ToolsBySkills:
        """Return the tools by their skills. Count a change, unless tools only became busy or idle."""
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
