"""What of a snapshot has room on a screen."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from broker.top.reading import Snapshot, ToolAtWork, Waiting

# Of a screen's lines so many are for tasks that wait, where there are too many tools for all of it.
_SHARE_OF_WAITING = 1 / 3
_MOST_KINDS = 5
# Where there is no screen to fill.
_PLAIN_KINDS = 20
_PLAIN_WAITING = 10

# A title, and the names of the columns.
_ABOVE_TOOLS = 2
# A title, and the names of the columns of two tables.
_ABOVE_WAITING = 3


class Kind(NamedTuple):
    """Waiting tasks that need the same and have the same priority, and how many they are."""

    needs: str
    priority: int
    tasks: int


class Layout(NamedTuple):
    """What has room.

    Args:
        tools: The first of the tools.
        kinds: What the most of the tasks need that were read.
        waiting: The first of these.
    """

    tools: Sequence[ToolAtWork]
    kinds: Sequence[Kind]
    waiting: Sequence[Waiting]


def fit(snapshot: Snapshot, lines: int | None) -> Layout:
    """What of a snapshot has room.

    Args:
        snapshot: What was read.
        lines: In so many lines; None: there is no screen.
    """
    kinds = _kinds(snapshot.waiting)
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


def rows(tool: ToolAtWork) -> int:
    """How many rows a tool takes: one for each work, and one for what has none."""
    return max(1, len(tool.work) + bool(unshown(tool)))


def unshown(tool: ToolAtWork) -> int:
    """How much work a tool has beside what was read."""
    return max(0, tool.load - len(tool.work)) if tool.work else 0


def _first(tools: Sequence[ToolAtWork], lines: int) -> Sequence[ToolAtWork]:
    for number, tool in enumerate(tools):
        lines -= rows(tool)
        if lines < 0:
            return tools[:number]
    return tools


def _kinds(waiting: Sequence[Waiting]) -> list[Kind]:
    counted = Counter((task.needs, task.priority) for task in waiting)
    return [Kind(needs, priority, number) for (needs, priority), number in counted.most_common()]
