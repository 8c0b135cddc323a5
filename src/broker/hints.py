"""Hints: what whoever watches has to be told of, and of what there is too much to tell one by one."""

from collections.abc import Collection
from typing import Literal

from broker.schemas.overview import EVENT_KINDS, EventKind
from broker.wake.listener import EVERYONE, TASK, TOOL, WORK

#: Of each kind, in one round; more are not told one by one.
MOST_IDS = 500
#: Why things are to be read anew.
MUCH = "Much has changed at once."

HintKind = Literal["task", "tool", "work"]
#: Of which kind are the ids that a source tells: a channel, or what the events' channel says.
KINDS: dict[str, HintKind] = {
    TASK: "task",
    TOOL: "tool",
    WORK: "work",
    "task": "task",
    "tool": "tool",
    "work": "work",
}
# What may have happened to things that are not named. A task that ended without work left a record; new work
# is told with its task and its tool, and work that has changed may have ended.
_AFFECTED: dict[str, Collection[EventKind]] = {
    "task": ["task"],
    TASK: ["task", "archive"],
    "tool": ["tool"],
    TOOL: ["tool"],
    "work": ["work", "task", "tool"],
    WORK: EVENT_KINDS,
}
_TOO_MANY: dict[HintKind, Collection[EventKind]] = {
    "task": _AFFECTED[TASK],
    "tool": _AFFECTED[TOOL],
    "work": EVENT_KINDS,
}


class Hints:
    """What is to be looked at, and of what there is too much."""

    def __init__(self) -> None:
        self.ids: dict[HintKind, set[str]] = {"task": set(), "tool": set(), "work": set()}
        self.missed: set[EventKind] = set()
        self.why = MUCH

    def add(self, source: str, ids: str) -> None:
        """Look at these; the source is a channel, or what the events' channel says."""
        if ids == EVERYONE:
            self.missed.update(_AFFECTED[source])
        else:
            self.look_at(KINDS[source], ids.split(","))

    def look_at(self, kind: HintKind, ids: Collection[str]) -> None:
        """Look at these."""
        found = self.ids[kind]
        found.update(ids)
        if len(found) > MOST_IDS:
            found.clear()
            self.missed.update(_TOO_MANY[kind])

    def miss(self, why: str) -> None:
        """Anything may have happened."""
        self.missed.update(EVENT_KINDS)
        self.why = why

    def join(self, later: "Hints") -> None:
        """Look at what came later, too."""
        for kind, ids in later.ids.items():
            self.look_at(kind, ids)
        if later.missed:
            self.missed.update(later.missed)
            self.why = later.why
