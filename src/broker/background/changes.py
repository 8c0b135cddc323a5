"""Changes to send to event-stream subscribers, merged when there are too many."""

from collections.abc import Collection
from typing import Literal

from broker.schemas.overview import EVENT_KINDS, EventKind
from broker.wake.listener import EVERYONE, TASK, TOOL, WORK

#: How many ids of each kind one round reports. If there are more, subscribers read everything of that kind.
MOST_IDS = 500
#: Why subscribers have to read everything again.
TOO_MANY_CHANGES = "Much has changed at once."

ChangeKind = Literal["task", "tool", "work"]
_CHANNELS: dict[str, ChangeKind] = {TASK: "task", TOOL: "tool", WORK: "work"}
#: The kind of the ids that a source names. A source is a channel, or the first word on the events' channel.
KINDS = _CHANNELS | {kind: kind for kind in _CHANNELS.values()}
# The kinds of event that may be missing when a source names no ids. A task that ended without work left
# a record. The statement that makes work also names its task and its tool. Work that changed may have ended.
_AFFECTED: dict[str, Collection[EventKind]] = {
    "task": ["task"],
    TASK: ["task", "archive"],
    "tool": ["tool"],
    TOOL: ["tool"],
    "work": ["work", "task", "tool"],
    WORK: EVENT_KINDS,
}
_TOO_MANY = {kind: _AFFECTED[channel] for channel, kind in _CHANNELS.items()}


class PendingChanges:
    """The ids of what has changed, and the kinds of which too much has changed."""

    def __init__(self) -> None:
        self.ids: dict[ChangeKind, set[str]] = {"task": set(), "tool": set(), "work": set()}
        self.missed: set[EventKind] = set()
        self.why = TOO_MANY_CHANGES

    def add(self, source: str, ids: str) -> None:
        """Add what a notification names: ids with commas between them, or `EVERYONE`."""
        if ids == EVERYONE:
            self.missed.update(_AFFECTED[source])
        else:
            self.add_ids(KINDS[source], ids.split(","))

    def add_ids(self, kind: ChangeKind, ids: Collection[str]) -> None:
        """Add ids; above `MOST_IDS`, replace them by the kinds of event that they may cause."""
        pending = self.ids[kind]
        pending.update(ids)
        if len(pending) > MOST_IDS:
            pending.clear()
            self.missed.update(_TOO_MANY[kind])

    def miss(self, why: str) -> None:
        """Count every kind as missed, because anything may have changed."""
        self.missed.update(EVENT_KINDS)
        self.why = why

    def join(self, later: "PendingChanges") -> None:
        """Add what changed later."""
        for kind, ids in later.ids.items():
            self.add_ids(kind, ids)
        if later.missed:
            self.missed.update(later.missed)
            self.why = later.why
