"""Kinds: what is the same for all tasks with equal needs, and for all tools with equal skills."""

from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec import Struct

from broker.matching.queue import Queue


class Remark(Struct, frozen=True):
    """Why the tasks of a kind have no tool.

    Args:
        text: For people.
        corrects: It is of use only to a task that was told something else before.
    """

    text: str
    corrects: bool = False


class Needs:
    """A kind of needs, and the tasks that wait with them.

    Which kinds of skills meet them is a set of their indexes, a bit for each: that is small where there are
    many kinds, and one operation tells which of those that match have room.

    Args:
        text: The needs, as JSON in its canonical form.
    """

    __slots__ = (
        "checked_at",
        "checked_for",
        "judged",
        "matching",
        "queue",
        "ranks",
        "remark",
        "text",
        "trouble",
        "unmatched_since",
        "untold",
    )

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.queue = Queue()
        #: The skills for which it was judged whether they match, and those that do.
        self.judged = 0
        self.matching = 0
        #: How high those that match are ranked, by their index, where it matters.
        self.ranks: dict[int, float] = {}
        #: Why it could not be judged.
        self.trouble: str | None = None
        #: Since when none of its tasks got a tool.
        self.unmatched_since = 0.0
        #: When it was last looked at why, and for which state of the tools.
        self.checked_at: float | None = None
        self.checked_for: object = None
        self.remark: Remark | None = None
        #: Whether there may be tasks that were not told it.
        self.untold = False


class KnownTool(Struct, eq=False, kw_only=True):
    """A tool that has room.

    Args:
        id: What it is called.
        skills: The kind of its skills.
        room: How much more work it takes.
        heard: Its number in the order in which tools and tasks were heard of.
    """

    id: str
    skills: "Skills"
    room: int
    heard: int


class Skills:
    """A kind of skills, and the tools with room that have them.

    Args:
        text: The skills, as JSON in its canonical form.
        index: Its number among the kinds that there are now.
    """

    __slots__ = ("bit", "index", "matched", "since", "text", "tools", "trouble", "wanted")

    def __init__(self, text: bytes, index: int) -> None:
        self.text = text
        self.index = index
        self.bit = 1 << index
        self.tools: dict[str, KnownTool] = {}
        #: By how many kinds of needs, of those that wait or lately did.
        self.wanted = 0
        #: Whether any needs ever matched, and since when none of them might have.
        self.matched = False
        self.since = datetime.now(UTC)
        #: Why it could not be judged.
        self.trouble: str | None = None


def indexes(kinds: int) -> Iterator[int]:
    """What is in a set of kinds of skills."""
    while kinds:
        lowest = kinds & -kinds
        yield lowest.bit_length() - 1
        kinds ^= lowest
