"""Interning: texts of equal JSON values share one object."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from broker.matching.needs import Needs
from broker.matching.skills import Skills

# The limits for released objects that are kept: their number, and the size of their texts in bytes.
_MOST_RELEASED = 2_000
_MOST_RELEASED_BYTES = 8 * 2**20
# The table remembers this many texts of a value, to find it without decoding.
_MOST_SPELLINGS = 8


Interned = TypeVar("Interned", Needs, Skills)


def canonical(text: bytes) -> bytes:
    """Return the canonical form of a JSON text, without white space and with sorted keys.

    `true` and `1` stay different, and so do `1` and `1.0`, because a `match` function might distinguish them.
    A text that cannot be decoded stays unchanged.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    except (msgspec.MsgspecError, RecursionError):
        return text


class InternTable(Generic[Interned]):
    """Maps equal JSON texts to one object, by the text itself or else by its canonical form.

    The table keeps a released object for a while, with its judgements, in case its value returns.

    Args:
        make: Creates an object from a canonical text.
        forget: Receives the objects that the table evicts, many at once.
    """

    def __init__(self, make: Callable[[bytes], Interned], forget: Callable[[list[Interned]], object]) -> None:
        self._make: Callable[[bytes], Interned] = make
        self._forget: Callable[[list[Interned]], object] = forget
        self._by_canonical: dict[bytes, Interned] = {}
        self._by_spelling: dict[bytes, Interned] = {}
        self._spellings: dict[Interned, list[bytes]] = {}
        # In the order of their release.
        self._released: dict[Interned, None] = {}
        self._released_bytes = 0

    def __len__(self) -> int:
        return len(self._by_canonical)

    def __iter__(self) -> Iterator[Interned]:
        return iter(self._by_canonical.values())

    def intern(self, text: bytes) -> Interned:
        """Return the object of a JSON text, and mark it as used."""
        interned = self._by_spelling.get(text)
        if interned is None:
            interned = self._find_or_make(text)
        if interned in self._released:
            del self._released[interned]
            self._released_bytes -= len(interned.text)
        return interned

    def release(self, interned: Interned) -> None:
        """Mark an object as no longer used."""
        if interned not in self._released:
            self._released[interned] = None
            self._released_bytes += len(interned.text)

    def evict(self) -> None:
        """Evict the older half of the released objects if there are too many."""
        if len(self._released) <= _MOST_RELEASED and self._released_bytes <= _MOST_RELEASED_BYTES:
            return
        evicted = list(islice(self._released, (len(self._released) + 1) // 2))
        for interned in evicted:
            del self._released[interned], self._by_canonical[interned.text]
            self._released_bytes -= len(interned.text)
            for text in self._spellings.pop(interned):
                del self._by_spelling[text]
        self._forget(evicted)

    def _find_or_make(self, text: bytes) -> Interned:
        plain = canonical(text)
        interned = self._by_canonical.get(plain)
        if interned is None:
            interned = self._by_canonical[plain] = self._make(plain)
            self._spellings[interned] = []
        spellings = self._spellings[interned]
        if len(spellings) < _MOST_SPELLINGS:
            spellings.append(text)
            self._by_spelling[text] = interned
        return interned
