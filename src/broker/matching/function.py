"""The strategy of a `match` function."""

from collections.abc import Callable
from typing import Any

from msgspec.json import decode

from broker.matching.mismatch import Mismatch, MismatchError

Match = Callable[[Any, Any], bool]
Rank = Callable[[Any, Any], float]


class Function:
    """Judges by a function.

    The function gets new values each time, and may change them.

    Args:
        match: Returns whether skills meet needs; it may raise MismatchError to say why not.
    """

    def __init__(self, match: Match) -> None:
        self._match = match

    def needs(self, text: bytes) -> bytes:
        """Return needs unchanged."""
        return text

    def skills(self, text: bytes) -> bytes:
        """Return skills unchanged."""
        return text

    def matches(self, skills: bytes, needs: bytes) -> bool:
        """Return whether the skills meet the needs; raise whatever the function raises."""
        return bool(self._match(decode(skills), decode(needs)))

    def mismatches(self, skills: bytes, needs: bytes) -> list[Mismatch]:
        """Return the message of its MismatchError, if any; raise whatever else the function raises."""
        try:
            self._match(decode(skills), decode(needs))
        except MismatchError as error:
            return [Mismatch(wanted="", had=str(error))]
        return []
