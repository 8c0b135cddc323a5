"""Skills: all free tools with equal skills."""

from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec import Struct, field


class FreeTool(Struct, eq=False, kw_only=True):
    """A tool with free capacity.

    Args:
        room: Its free capacity.
        arrival: Its number in the order in which the matcher got tasks and tools.
    """

    id: str
    skills: "Skills"
    room: int
    arrival: int


class Skills(Struct, eq=False):
    """The skills of one or more tools, and what was judged of them.

    Args:
        text: The skills, as canonical JSON.
        index: Their number among the current skills.
        bit: The bit set of this index.
        tools: The free tools that have them, by id.
        wanted: How many different needs match, of current or recent tasks.
        matched: Whether any needs ever matched.
        since: Since when the matcher knows the skills.
        trouble: Why the skills could not be judged.
    """

    text: bytes
    index: int
    bit: int
    tools: dict[str, FreeTool] = {}
    wanted: int = 0
    matched: bool = False
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    trouble: str | None = None


def indexes(bits: int) -> Iterator[int]:
    """Iterate over the indexes in a bit set of skills."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
