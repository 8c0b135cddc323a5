"""Sanitize reports, so the broker accepts any report of a handler or a program."""

import re
from typing import Any

import msgspec
from msgspec import Raw

from broker.client.encoding import as_json, encoded, message_of
from broker.schemas.limits import LONGEST_TEXT_CHARS
from broker.texts import shorten

# The tolerance for rounding errors in a progress of 0 or 1.
_ROUNDING = 1e-6
# PostgreSQL can store neither NUL nor a lone surrogate.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def text(value: str) -> str:
    """Return a string, with U+FFFD in place of each character that the broker cannot store."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def message(value: Any) -> str | None:
    """Return the message of a report, from a string, an exception or any other value."""
    if value is None or isinstance(value, str):
        words = value
    else:
        words = message_of(value) if isinstance(value, BaseException) else str(value)
    return None if words is None else text(shorten(words, LONGEST_TEXT_CHARS))


def progress(value: Any) -> float | None:
    """Return the progress of a report, from 0 to 1, or None if the value is not a progress."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    is_progress = -_ROUNDING <= number <= 1 + _ROUNDING
    return min(max(number, 0.0), 1.0) if is_progress else None


def data(value: Any) -> Raw:
    """Return the data of a report as JSON with sanitized strings. It raises the same errors as `encoded`."""
    try:
        content = encoded(value)
    except UnicodeEncodeError:
        content = b""
    if content and b"\\u0000" not in content:
        return Raw(content)
    return Raw(encoded(_sanitized(msgspec.to_builtins(value, enc_hook=as_json))))


def _sanitized(value: Any) -> Any:
    match value:
        case str():
            return text(value)
        case dict():
            return {_sanitized(name): _sanitized(item) for name, item in value.items()}
        case list() | tuple():
            return [_sanitized(item) for item in value]
    return value
