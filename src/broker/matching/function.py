"""The strategy that is a Python function of one's own."""

from collections.abc import Callable
from typing import Any

from msgspec.json import decode

from broker.matching.misfit import Misfit, MisfitError

Match = Callable[[Any, Any], bool]
Rank = Callable[[Any, Any], float]


class Function:
    """Judges by a function.

    It is given values of its own each time: it may change them.

    Args:
        match: Whether skills meet needs; it may raise MisfitError to say why not.
    """

    def __init__(self, match: Match) -> None:
        self._match = match

    def needs(self, text: bytes) -> bytes:
        """The needs, as they are."""
        return text

    def skills(self, text: bytes) -> bytes:
        """The skills, as they are."""
        return text

    def matches(self, skills: bytes, needs: bytes) -> bool:
        """Whether the skills meet the needs; raises whatever the function does."""
        return bool(self._match(decode(skills), decode(needs)))

    def misfits(self, skills: bytes, needs: bytes) -> list[Misfit]:
        """Why not, where the function says it; raises whatever else the function does."""
        try:
            self._match(decode(skills), decode(needs))
        except MisfitError as error:
            return [Misfit(wanted="", had=str(error))]
        return []
