"""Interning: equal JSON values share one object, however they are written."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import msgspec

from broker.matching.needs import Needs
from broker.matching.skills import Skills

# How many released objects are kept, and how many bytes of their texts.
_MOST_RELEASED = 2_000
_MOST_RELEASED_BYTES = 8 * 2**20
# How many ways to write a value are remembered, so that it need not be decoded again.
_MOST_SPELLINGS = 8


Interned = TypeVar("Interned", Needs, Skills)


def canonical(text: bytes) -> bytes:
    """Return the canonical form of a JSON text: without white space, its keys in order.

    `true` and `1` stay different, and so do `1` and `1.0`: a `match` function might distinguish them. A text
    that cannot be decoded stays as it is.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    except (msgspec.MsgspecError, RecursionError):
        return text


class InternTable(Generic[Interned]):
    """The objects of JSON texts. It finds them by the text as it came, or else by its canonical form.

    A released object is kept for a while, with what was judged of it, in case its value comes again.

    Args:
        make: Makes an object from a canonical text.
        forget: Called with the objects that are evicted, many at once.
    """

    def __init__(self, make: Callable[[bytes], Interned], forget: Callable[[list[Interned]], object]) -> None:
        self._make: Callable[[bytes], Interned] = make
        self._forget: Callable[[list[Interned]], object] = forget
        self._by_canonical: dict[bytes, Interned] = {}
        self._by_spelling: dict[bytes, Interned] = {}
        self._spellings: dict[Interned, list[bytes]] = {}
        # The one that was released first comes first.
        self._released: dict[Interned, None] = {}
        self._released_bytes = 0

    def __len__(self) -> int:
        return len(self._by_canonical)

    def __iter__(self) -> Iterator[Interned]:
        return iter(self._by_canonical.values())

    def intern(self, text: bytes) -> Interned:
        """Return the object of a JSON text, which is in use from now on."""
        interned = self._by_spelling.get(text)
        if interned is None:
            interned = self._find_or_make(text)
        if interned in self._released:
            del self._released[interned]
            self._released_bytes -= len(interned.text)
        return interned

    def release(self, interned: Interned) -> None:
        """Release an object that is no longer in use."""
        if interned not in self._released:
            self._released[interned] = None
            self._released_bytes += len(interned.text)

    def evict(self) -> None:
        """Forget the older half of the released objects if there are too many."""
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
