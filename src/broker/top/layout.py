"""Choose the parts of a snapshot that fit on a screen."""

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from broker.schemas.overview import QueuedKind, ToolSummary, WaitingTask, WorkSummary
from broker.top.reader import Snapshot

#: The maximum number of work items to show per tool.
WORK_OF_TOOL = 4

# The share of the lines for waiting tasks, if the tools need more than the rest.
_SHARE_OF_WAITING = 1 / 3
_MOST_KINDS = 5
# The limits for output without a screen.
_PLAIN_KINDS = 20
_PLAIN_WAITING = 10

# The lines of a title and the names of the columns.
_ABOVE_TOOLS = 2
# The lines of a title and the names of the columns of two tables.
_ABOVE_WAITING = 3


class Layout(NamedTuple):
    """The parts of a snapshot that fit on the screen: the first tools, kinds and waiting tasks."""

    tools: Sequence[ToolSummary]
    kinds: Sequence[QueuedKind]
    waiting: Sequence[WaitingTask]


def fit(snapshot: Snapshot, lines: int | None) -> Layout:
    """Choose the parts of a snapshot that fit into a number of lines, or into plain output for None."""
    kinds = snapshot.queue.kinds
    if lines is None:
        return Layout(snapshot.tools, kinds[:_PLAIN_KINDS], snapshot.waiting[:_PLAIN_WAITING])
    kinds = kinds[:_MOST_KINDS]
    wanted_by_tools = _ABOVE_TOOLS + sum(map(rows, snapshot.tools))
    wanted_by_waiting = _ABOVE_WAITING + len(kinds) + len(snapshot.waiting) if kinds else 1
    for_waiting = min(wanted_by_waiting, max(lines - wanted_by_tools, int(lines * _SHARE_OF_WAITING)))
    left = for_waiting - _ABOVE_WAITING
    kinds = kinds[: max(0, left // 2)]
    if not kinds:
        for_waiting = 1
    return Layout(
        _first(snapshot.tools, lines - for_waiting - _ABOVE_TOOLS),
        kinds,
        snapshot.waiting[: left - len(kinds)] if kinds else [],
    )


def rows(tool: ToolSummary) -> int:
    """Return the number of rows of a tool: one per shown work item, and one for the hidden ones."""
    return max(1, len(shown_work(tool)) + bool(hidden_work(tool)))


def shown_work(tool: ToolSummary) -> Sequence[WorkSummary]:
    """Return the work items of a tool to show."""
    return tool.work[:WORK_OF_TOOL]


def hidden_work(tool: ToolSummary) -> int:
    """Return the number of work items of a tool that are not shown."""
    return max(0, tool.load - len(shown_work(tool))) if tool.work else 0


def _first(tools: Sequence[ToolSummary], lines: int) -> Sequence[ToolSummary]:
    ends = list(accumulate(map(rows, tools)))
    return tools[: bisect(ends, lines)]
