"""Clean reports, so that the broker accepts whatever a handler or a program sends."""

import re
from typing import Any

import msgspec
from msgspec import Raw

from broker.client.encoding import as_json, encoded, message_of

# The longest text that the broker accepts by default.
LONGEST_TEXT = 10_000
# What rounding may add to a progress of 1.
_ROUNDING = 1e-6
_CUT = "…"
# PostgreSQL can store neither NUL nor half a character.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def text(value: str) -> str:
    """Return a text with a replacement character for each that the broker cannot store."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def cut(value: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text cut to a length; one that is cut ends in `…`."""
    return value if len(value) <= longest else value[: longest - len(_CUT)] + _CUT


def message(value: Any) -> str | None:
    """Return a report's message: a text, the message of an exception, or anything else as a text."""
    if value is None or isinstance(value, str):
        words = value
    else:
        words = message_of(value) if isinstance(value, BaseException) else str(value)
    return None if words is None else text(cut(words))


def progress(value: Any) -> float | None:
    """Return a report's progress, 0 to 1, without what rounding has added; None where it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    within = -_ROUNDING <= number <= 1 + _ROUNDING
    return min(max(number, 0.0), 1.0) if within else None


def data(value: Any) -> Raw:
    """Return a report's data as JSON, its texts cleaned.

    Raises:
        Exception: It is no JSON; see `encoded`.
    """
    try:
        content = encoded(value)
    except UnicodeEncodeError:
        content = b""
    if content and b"\\u0000" not in content:
        return Raw(content)
    return Raw(encoded(_cleaned(msgspec.to_builtins(value, enc_hook=as_json))))


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return text(value)
        case dict():
            return {_cleaned(name): _cleaned(item) for name, item in value.items()}
        case list() | tuple():
            return [_cleaned(item) for item in value]
    return value
