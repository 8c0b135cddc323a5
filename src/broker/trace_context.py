"""The trace of a request, from its headers (W3C Trace Context)."""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

# A later version may add fields. The broker ignores them and passes on the rest as its own version.
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
# The standard requires passing on at least this length. A longer state may be omitted, but only as a whole.
_MOST_STATE_CHARS = 512
_MOST_MEMBERS = 32


class TraceContext(NamedTuple):
    """The position of a request in a trace.

    Args:
        traceparent: The ids of the trace and the span, and the flag whether they are recorded.
        tracestate: The data of the tracing systems. Empty if there is none.
    """

    traceparent: str
    tracestate: str = ""

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Self | None:
        """Return the context in the headers of a request, or None if it is missing or invalid."""
        parents = [value for name, value in headers if name == b"traceparent"]
        if len(parents) != 1 or (parent := _parent(parents[0])) is None:
            return None
        return cls(parent, _state([value for name, value in headers if name == b"tracestate"]))

    @classmethod
    def read(cls, text: str | None) -> Self | None:
        """Return the context from its stored text, or None if there is no text."""
        return cls(*text.split(" ", 1)) if text else None

    @property
    def text(self) -> str:
        """The context as the text that the database stores."""
        return f"{self.traceparent} {self.tracestate}" if self.tracestate else self.traceparent

    def headers(self) -> dict[str, str]:
        """Return the headers that pass on the context."""
        return {name: value for name, value in self._asdict().items() if value}


def _parent(value: bytes) -> str | None:
    match = _PARENT.fullmatch(value.decode("latin-1").strip(" \t"))
    if match is None or (match["version"] == _VERSION and match["more"] is not None):
        return None
    return _VERSION + match["rest"]


def _state(values: list[bytes]) -> str:
    """Return all values of a tracestate as one. Empty if a member is invalid."""
    listed = (member.strip(" \t") for value in values for member in value.decode("latin-1").split(","))
    members = [member for member in listed if member]
    keys = {match["key"] for match in map(_MEMBER.fullmatch, members) if match}
    if len(keys) < len(members) or len(keys) > _MOST_MEMBERS:
        return ""
    state = ",".join(members)
    return state if len(state) <= _MOST_STATE_CHARS else ""
