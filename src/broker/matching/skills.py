"""Skills: all free tools with equal skills."""

from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec import Struct


class FreeTool(Struct, eq=False, kw_only=True):
    """A tool with free capacity.

    Args:
        id: Its id.
        skills: Its skills.
        room: Its free capacity.
        arrival: Its number in the order in which the matcher got tasks and tools.
    """

    id: str
    skills: "Skills"
    room: int
    arrival: int


class Skills:
    """The skills of one or more tools, and what was judged of them.

    Args:
        text: The skills, as canonical JSON.
        index: Their number among the current skills.
    """

    __slots__ = ("bit", "index", "matched", "since", "text", "tools", "trouble", "wanted")

    def __init__(self, text: bytes, index: int) -> None:
        self.text = text
        self.index = index
        self.bit = 1 << index
        self.tools: dict[str, FreeTool] = {}
        #: How many different needs match, of current or recent tasks.
        self.wanted = 0
        #: Whether any needs ever matched, and since when the matcher knows the skills.
        self.matched = False
        self.since = datetime.now(UTC)
        #: Why the skills could not be judged.
        self.trouble: str | None = None


def indexes(bits: int) -> Iterator[int]:
    """Iterate over the indexes in a bit set of skills."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
