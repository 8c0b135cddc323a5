"""The trace that a request belongs to, from its headers (W3C Trace Context)."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

# A later version may add fields. They are ignored, and the rest is passed on as this version.
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
# Everybody has to pass on at least this much. A longer state may be left out, but only as a whole.
_MOST_STATE_CHARS = 512
_MOST_MEMBERS = 32


class TraceContext(NamedTuple):
    """The place in a trace that a request belongs to.

    Args:
        traceparent: The trace, the span, and whether it is recorded.
        tracestate: The state of each tracer. Empty if there is none.
    """

    traceparent: str
    tracestate: str = ""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Self | None:
        """Return the context in the headers of a request; None if there is none, or it is not valid."""
        parents = [value for name, value in headers if name == b"traceparent"]
        if len(parents) != 1 or (parent := _parent(parents[0])) is None:
            return None
        return cls(parent, _state([value for name, value in headers if name == b"tracestate"]))

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Return the context that a text has; None for no text."""
        return cls(*text.split(" ", 1)) if text else None

    @property
    def text(self) -> str:
        """The text that the database stores."""
        return f"{self.traceparent} {self.tracestate}" if self.tracestate else self.traceparent

    def headers(self) -> dict[str, str]:
        """Return the headers that pass it on."""
        return {name: value for name, value in self._asdict().items() if value}


def _parent(value: bytes) -> str | None:
    found = _PARENT.fullmatch(value.decode("latin-1").strip(" \t"))
    if found is None or (found["version"] == _VERSION and found["more"] is not None):
        return None
    return _VERSION + found["rest"]


def _state(values: list[bytes]) -> str:
    """Return all of it in one line; empty if a part of it is not valid."""
    listed = (member.strip(" \t") for value in values for member in value.decode("latin-1").split(","))
    members = [member for member in listed if member]
    keys = {match["key"] for match in map(_MEMBER.fullmatch, members) if match}
    if len(keys) < len(members) or len(keys) > _MOST_MEMBERS:
        return ""
    state = ",".join(members)
    return state if len(state) <= _MOST_STATE_CHARS else ""
