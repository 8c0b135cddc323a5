"""Sanitize reports, so that the broker accepts whatever a handler or a program sends."""

import re
from typing import Any

import msgspec
from msgspec import Raw

from broker.client.encoding import as_json, encoded, message_of
from broker.schemas.limits import LONGEST_TEXT_CHARS
from broker.texts import shorten

# What rounding may add to a progress of 1.
_ROUNDING = 1e-6
# PostgreSQL can store neither NUL nor half a character.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def text(value: str) -> str:
    """Return a text with a replacement for each character that the broker cannot store."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


def message(value: Any) -> str | None:
    """Return a report's message: a text, the message of an exception, or any other value as a text."""
    if value is None or isinstance(value, str):
        words = value
    else:
        words = message_of(value) if isinstance(value, BaseException) else str(value)
    return None if words is None else text(shorten(words, LONGEST_TEXT_CHARS))


def progress(value: Any) -> float | None:
    """Return a report's progress, 0 to 1, without rounding errors; None if the value is not a progress."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    is_progress = -_ROUNDING <= number <= 1 + _ROUNDING
    return min(max(number, 0.0), 1.0) if is_progress else None


def data(value: Any) -> Raw:
    """Return a report's data as JSON with sanitized texts; see `encoded` for what it raises."""
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
