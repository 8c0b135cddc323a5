"""A register of JSON values, in which equal ones are one kind."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

import msgspec

# Of kinds that nobody has any more, so many are remembered, and so much of their text.
_RESTING = 2_000
_RESTING_BYTES = 8 * 2**20
# In so many ways of writing it a value is known at once.
_SPELLINGS = 8


class _Kind(Protocol):
    @property
    def text(self) -> bytes: ...


Kind = TypeVar("Kind", bound=_Kind)


def canonical(text: bytes) -> bytes:
    """The one way to write a JSON value: no white space, keys in order.

    `true` and `1` differ, and so do `1` and `1.0`: a function that judges might tell them apart. What cannot
    be read stays as it is.
    """
    try:
        return msgspec.json.encode(msgspec.json.decode(text), order="deterministic")
    except (msgspec.MsgspecError, RecursionError):
        return text


class Register(Generic[Kind]):
    """Finds the kind of a JSON text: by the text as it came, else by its canonical form.

    A kind that nobody has any more rests: it is remembered for a while, with what was judged of it, for the
    next one who comes with it.

    Args:
        make: Makes a kind, given its canonical text.
        forget: Is given the kinds that are forgotten, many at once.
    """

    def __init__(self, make: Callable[[bytes], Kind], forget: Callable[[list[Kind]], object]) -> None:
        self._make = make
        self._forget = forget
        self._kinds: dict[bytes, Kind] = {}
        self._spelled: dict[bytes, Kind] = {}
        self._spellings: dict[Kind, list[bytes]] = {}
        # The one that has rested longest first.
        self._resting: dict[Kind, None] = {}
        self._resting_bytes = 0

    def __len__(self) -> int:
        return len(self._kinds)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def of(self, text: bytes) -> Kind:
        """The kind of a JSON text; it rests no more."""
        kind = self._spelled.get(text)
        if kind is None:
            kind = self._read(text)
        if kind in self._resting:
            del self._resting[kind]
            self._resting_bytes -= len(kind.text)
        return kind

    def rest(self, kind: Kind) -> None:
        """Let a kind rest that nobody has any more."""
        if kind not in self._resting:
            self._resting[kind] = None
            self._resting_bytes += len(kind.text)

    def tidy(self) -> None:
        """Forget those that have rested longest, down to half of them, if too many do."""
        if len(self._resting) <= _RESTING and self._resting_bytes <= _RESTING_BYTES:
            return
        forgotten = list(islice(self._resting, (len(self._resting) + 1) // 2))
        for kind in forgotten:
            self._drop(kind)
        self._forget(forgotten)

    def _read(self, text: bytes) -> Kind:
        plain = canonical(text)
        kind = self._kinds.get(plain)
        if kind is None:
            kind = self._kinds[plain] = self._make(plain)
            self._spellings[kind] = []
        spellings = self._spellings[kind]
        if len(spellings) < _SPELLINGS:
            spellings.append(text)
            self._spelled[text] = kind
        return kind

    def _drop(self, kind: Kind) -> None:
        del self._resting[kind], self._kinds[kind.text]
        self._resting_bytes -= len(kind.text)
        for text in self._spellings.pop(kind):
            del self._spelled[text]
