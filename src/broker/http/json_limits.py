"""Check the values of a request: their size, their depth, and that PostgreSQL's jsonb can store them.

A value is checked with a few passes of C over its bytes. A long value, or one that looks suspicious, is
checked in steps, so that a thread that checks it never holds the interpreter for long.
"""

import re
import time
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import accumulate
from typing import get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from broker.schemas.problems import FieldError
from broker.schemas.values import NULL, Request
from broker.settings import Settings

_MATCHED = ("needs", "skills")

# Most values pass these checks at once. A number out of range has an exponent of three digits, or very many
# digits; texts may have them, too. Two patterns, because a search for one that starts with a letter is many
# times faster than for one that starts with a set.
_LARGE_EXPONENT = re.compile(rb"e[+-]?[0-9]{3}")
_LARGE_EXPONENT_IN_CAPITALS = re.compile(rb"E[+-]?[0-9]{3}")
_MANY_DIGITS = 1_000
_DIGITS_ONLY = bytes(ord("0") if byte in b"0123456789." else ord(" ") for byte in range(256))
# Only numbers that may be out of range: an exponent of at least 100, or `_MANY_DIGITS` digits. The lookbehind
# keeps the search linear: it begins once in each run of digits.
_LARGE_NUMBER = re.compile(
    rb"(?<![0-9.])(?:[0-9][0-9.]{%d,}+(?:[eE][+-]?[0-9]++)?|[0-9][0-9.]*+[eE][+-]?0*+[1-9][0-9]{2}[0-9]*+)"
    % (_MANY_DIGITS - 1)
)
_IN_NUMBERS = b"0123456789+-.eE"
_NUL = "holds \\u0000, which PostgreSQL cannot keep"
_OUT_OF_RANGE = "holds a number out of PostgreSQL's range"
LONE_SURROGATE = "holds a lone surrogate, which is no character"
_SURROGATE_ERROR = re.compile(r"(?:surrogate pair|end of hex escape) \(byte ([0-9]+)\)")
# For each byte: +1 opens, -1 closes; all others are removed.
_NESTING = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_NESTING = bytes(set(range(256)) - set(b"[{]}"))

# PostgreSQL's numeric: this many digits before the point, and after it.
_DIGITS_BEFORE, _DIGITS_AFTER = 131_072, 16_383
# Written out, `1e131071` is 131,072 digits: a small body must not become a huge row.
_DIGITS_IN_ALL = 1_000_000
# No number that is longer is in range.
_LONGEST_NUMBER = 200_000

# How much of a value one step looks at: a step holds the interpreter for some milliseconds at most.
STEP_BYTES = 128 * 1024
# A pause between steps lets the event loop, which waits for the interpreter, run at once.
_PAUSE_SECONDS = 0.0005

_anything = msgspec.json.Decoder(Raw)


def problems(request: Request, limits: Settings, path: str = "") -> Iterator[FieldError]:
    """Yield what is wrong with the values of a request; `path`: its place in the body, like `items[13].`."""
    for name, kind in _fields(type(request)):
        value = getattr(request, name)
        if value is None or value is NULL:
            # Most fields are absent.
            continue
        if kind is list:
            for place, item in enumerate(value):
                yield from problems(item, limits, f"{path}{name}[{place}].")
        elif isinstance(value, Raw):
            if message := json_problem(bytes(value), limits, matched=name in _MATCHED):
                yield FieldError(field=path + name, message=message)
        elif isinstance(value, str) and (message := _text_problem(value, limits)):
            yield FieldError(field=path + name, message=message)
        elif isinstance(value, datetime) and not _in_range(value):
            yield FieldError(field=path + name, message="is out of range")


@cache
def _fields(struct: type[Request]) -> tuple[tuple[str, type], ...]:
    """Return the fields to check: JSON values, texts, times, and lists of requests."""
    fields: list[tuple[str, type]] = []
    for name, hint in get_type_hints(struct).items():
        kinds = {hint, *get_args(hint)}
        kinds |= {get_origin(kind) for kind in kinds}
        fields += [(name, kind) for kind in (Raw, str, list, datetime) if kind in kinds]
    return tuple(fields)


def _in_range(value: datetime) -> bool:
    """Return whether a time has a UTC equivalent: its offset may move it out of the calendar."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _text_problem(value: str, limits: Settings) -> str | None:
    if len(value) > limits.max_text_chars:
        return f"is {len(value)} characters long; the limit is {limits.max_text_chars}"
    return _NUL if "\x00" in value else None


def json_problem(value: bytes, limits: Settings, *, matched: bool) -> str | None:
    """Return what is wrong with a JSON value, in words; `matched`: it is a `needs` or `skills`."""
    if matched and len(value) > limits.max_match_bytes:
        return f"is {len(value)} bytes long; the limit is {limits.max_match_bytes}"
    if _is_plain(value, limits.max_depth):
        return None
    return _look_closely(value, limits.max_depth)


def lone_surrogate(body: bytes) -> int | None:
    """Return the offset of an escaped surrogate that stands alone, if the decoder refuses the body for it."""
    try:
        # The decoder reports a truncated input unless room for the other surrogate follows.
        _anything.decode(body + b" " * 6)
    except msgspec.DecodeError as error:
        if place := _SURROGATE_ERROR.search(str(error)):
            return int(place[1]) - 1
    return None


def _is_plain(value: bytes, max_depth: int) -> bool:
    """Return whether a short value passes all gates; a long one is not plain."""
    size = len(value)
    if size > STEP_BYTES or b"\\u0000" in value:
        return False
    # What is opened is closed again, so a short value is not deep.
    if size > 2 * max_depth and value.count(b"[") + value.count(b"{") > max_depth:
        return False
    return not _may_hold_large_number(value)


def _look_closely(value: bytes, max_depth: int) -> str | None:
    """Check well-formed JSON in steps, each a few passes of C; return what is wrong with it, in words."""
    depth = digits = in_string = 0
    end_of_text = number = b""
    for piece in _pieces(value):
        if b"\\u0000" in end_of_text + piece:
            return _NUL
        end_of_text = piece[-5:]
        # Every second part is a string, or what this piece has of it.
        parts = piece.split(b'"')
        outside = b" ".join(parts[in_string::2])
        in_string = (in_string + len(parts) - 1) % 2
        nesting = outside.translate(_NESTING, _NO_NESTING)
        opened = nesting.count(b"\x01")
        may_be_deep = depth + opened > max_depth
        if may_be_deep and max(accumulate(array("b", nesting), initial=depth)) > max_depth:
            return f"is nested deeper than {max_depth}"
        depth += 2 * opened - len(nesting)
        # The next piece may have the rest of a number.
        text = number + outside
        whole = text.rstrip(_IN_NUMBERS)
        number = text[len(whole) :]
        digits += _digits(whole)
        if digits > _DIGITS_IN_ALL or len(number) > _LONGEST_NUMBER:
            return _OUT_OF_RANGE
    return _OUT_OF_RANGE if digits + _digits(number) > _DIGITS_IN_ALL else None


def _pieces(value: bytes) -> Iterator[bytes]:
    """Yield a value in steps, with something else in place of escaped backslashes and quotes.

    Other threads run between the steps.
    """
    start = 0
    while start < len(value):
        if start:
            time.sleep(_PAUSE_SECONDS)
        piece = value[start : start + STEP_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            # The last one belongs to what follows it.
            piece = value[start : start + STEP_BYTES + 1]
        start += len(piece)
        yield piece.replace(b"\\\\", b"..").replace(b'\\"', b"..")


def _may_hold_large_number(value: bytes) -> bool:
    if _LARGE_EXPONENT.search(value) or _LARGE_EXPONENT_IN_CAPITALS.search(value):
        return True
    return len(value) > _MANY_DIGITS and b"0" * _MANY_DIGITS in value.translate(_DIGITS_ONLY)


def _digits(text: bytes) -> int:
    """Return how many digits the large numbers in JSON without its strings have when written out.

    A number that is out of range counts as more digits than a value may have.
    """
    if not _may_hold_large_number(text):
        return 0
    digits = 0
    for match in _LARGE_NUMBER.finditer(text):
        try:
            number = Decimal(match[0].decode())
        except InvalidOperation:  # out of Decimal's own range, which is larger
            return _DIGITS_IN_ALL + 1
        before, after = number.adjusted() + 1, -int(number.as_tuple().exponent)
        if before > _DIGITS_BEFORE or after > _DIGITS_AFTER:
            return _DIGITS_IN_ALL + 1
        digits += max(before, 0) + max(after, 0)
        if digits > _DIGITS_IN_ALL:
            break
    return digits
