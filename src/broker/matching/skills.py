"""Groups of tools with equal skills, and the free tools of each group."""

from collections.abc import Iterator
from datetime import UTC, datetime

from msgspec import Struct, field


class FreeTool(Struct, eq=False, kw_only=True):
    """A tool with free capacity.

    Args:
        id: Its id.
        skills: Its skills.
        room: Its free capacity.
        arrival: Its unique number in the order in which the matcher received tasks and tools.
    """

    id: str
    skills: "Skills"
    room: int
    arrival: int


class Skills(Struct, eq=False):
    """The skills of one or more tools, with the judgements about them.

    Args:
        text: The skills, as canonical JSON.
        index: Their number among the current skills.
        bit: The bit set with this index alone.
        tools: The free tools with these skills, by id.
        wanted: The number of different needs of current or recent tasks that match.
        matched: True if any needs have ever matched.
        since: The time at which the matcher first saw the skills.
        trouble: The reason why the strategy could not judge the skills, or None.
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
