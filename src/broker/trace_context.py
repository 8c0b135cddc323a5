"""The trace that a request belongs to, as its headers say it (W3C Trace Context)."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

# Of a later version only what this one knows is understood, and handed on as this one.
_PARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})"
    r"(?P<rest>-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<more>-.*)?",
    re.ASCII,
)
_VERSION = "00"
_MEMBER = re.compile(
    r"(?P<key>[a-z0-9][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
)
# As much as everybody is asked to hand on at least. What is more may be left out, but only as a whole.
_MOST_STATE_CHARS = 512
_MOST_MEMBERS = 32


class TraceContext(NamedTuple):
    """Where in which trace something was asked for, and what tracers want to know of that besides.

    Args:
        traceparent: The trace, the span, and whether it is recorded.
        tracestate: Of each tracer a word of its own; empty: there is none.
    """

    traceparent: str
    tracestate: str = ""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Self | None:
        """What the headers of a request say; None: nothing, or nothing that has a meaning."""
        parents = [value for name, value in headers if name == b"traceparent"]
        if len(parents) != 1 or (parent := _parent(parents[0])) is None:
            return None
        return cls(parent, _state([value for name, value in headers if name == b"tracestate"]))

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """From the text that it is kept as."""
        return cls(*text.split(" ", 1)) if text else None

    @property
    def text(self) -> str:
        """The text that it is kept as."""
        return f"{self.traceparent} {self.tracestate}" if self.tracestate else self.traceparent

    def headers(self) -> dict[str, str]:
        """The headers that say it."""
        return {name: value for name, value in self._asdict().items() if value}


def _parent(value: bytes) -> str | None:
    found = _PARENT.fullmatch(value.decode("latin-1").strip(" \t"))
    if found is None or (found["version"] == _VERSION and found["more"] is not None):
        return None
    return _VERSION + found["rest"]


def _state(values: list[bytes]) -> str:
    """All of it in one line; nothing, where a part of it has no meaning."""
    members = [member.strip(" \t") for value in values for member in value.decode("latin-1").split(",")]
    found = [_MEMBER.fullmatch(member) for member in members if member]
    keys = {member["key"] for member in found if member}
    if len(keys) < len(found) or len(keys) > _MOST_MEMBERS:
        return ""
    state = ",".join(member for member in members if member)
    return state if len(state) <= _MOST_STATE_CHARS else ""
