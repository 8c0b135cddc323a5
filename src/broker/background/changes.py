"""Changes to send to event-stream subscribers, merged when there are too many."""

from collections.abc import Collection
from typing import Literal

from broker.schemas.overview import EVENT_KINDS, EventKind
from broker.wake.listener import EVERYONE, TASK, TOOL, WORK

#: The maximum number of ids of each kind in one round. Above it, subscribers read everything of that kind.
MOST_IDS = 500
#: The reason that `resync` gives by default.
TOO_MANY_CHANGES = "Too much has changed at once."

ChangeKind = Literal["task", "tool", "work"]
_CHANNELS: dict[str, ChangeKind] = {TASK: "task", TOOL: "tool", WORK: "work"}
#: The kind of ids from each source. A source is a channel, or the first word of a payload on `EVENTS`.
KINDS = _CHANNELS | {kind: kind for kind in _CHANNELS.values()}
# The kinds of events that may be missing if a source names no ids. A task that ended without work has left a
# record. The statement that creates work also names its task and its tool. Changed work may have ended.
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
    """The ids of changed rows, and the kinds of events that are missing because too much has changed."""

    def __init__(self) -> None:
        self.ids: dict[ChangeKind, set[str]] = {"task": set(), "tool": set(), "work": set()}
        self.missed: set[EventKind] = set()
        self.why = TOO_MANY_CHANGES

    def add(self, source: str, ids: str) -> None:
        """Add the payload of a notification: comma-separated ids, or `EVERYONE`."""
        if ids == EVERYONE:
            self.missed.update(_AFFECTED[source])
        else:
            self.add_ids(KINDS[source], ids.split(","))

    def add_ids(self, kind: ChangeKind, ids: Collection[str]) -> None:
        """Add ids. Above `MOST_IDS`, replace them by the kinds of events that they may cause."""
        pending = self.ids[kind]
        pending.update(ids)
        if len(pending) > MOST_IDS:
            pending.clear()
            self.missed.update(_TOO_MANY[kind])

    def miss(self, why: str) -> None:
        """Mark every kind as missed, because anything may have changed."""
        self.missed.update(EVENT_KINDS)
        self.why = why

    def join(self, later: "PendingChanges") -> None:
        """Add later changes."""
        for kind, ids in later.ids.items():
            self.add_ids(kind, ids)
        if later.missed:
            self.missed.update(later.missed)
            self.why = later.why
