"""Check the values of a request: their size, their depth, and that PostgreSQL's jsonb can store them.

A check makes a few passes over the bytes of a value, which run in C. It handles long and suspicious values in
steps, because a thread must not hold the interpreter lock for long.
"""

import re
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import accumulate
from operator import attrgetter
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from broker.schemas.problems import FieldError
from broker.schemas.values import NULL, Request
from broker.settings import Settings

_MATCHED = ("needs", "skills")

# Most values pass these checks at once. A number out of range has an exponent of at least three digits, or
# very many digits. Texts may also contain these. There are two patterns, because the search for a fixed first
# letter is many times faster than the search for a set of letters.
_LARGE_EXPONENT = re.compile(rb"e[+-]?[0-9]{3}")
_LARGE_EXPONENT_IN_CAPITALS = re.compile(rb"E[+-]?[0-9]{3}")
_MANY_DIGITS = 1_000
_DIGITS_ONLY = bytes(ord("0") if byte in b"0123456789." else ord(" ") for byte in range(256))
# Numbers that may be out of range: with an exponent of at least 100, or with `_MANY_DIGITS` digits. The
# lookbehind keeps the search linear, because a match can begin only once in each run of digits.
_LARGE_NUMBER = re.compile(
    rb"(?<![0-9.])(?:[0-9][0-9.]{%d,}+(?:[eE][+-]?[0-9]++)?|[0-9][0-9.]*+[eE][+-]?0*+[1-9][0-9]{2}[0-9]*+)"
    % (_MANY_DIGITS - 1)
)
_IN_NUMBERS = b"0123456789+-.eE"
# A number with an exponent of at least three digits, as a token of a whole body. An id in a text may look
# like such a number.
_NUMBER_WITH_LARGE_EXPONENT = re.compile(rb"[:,\[\s]-?[0-9][0-9.]*+[eE][+-]?[0-9]{3}")
_NUL = "contains \\u0000, which PostgreSQL cannot store"
_OUT_OF_RANGE = "contains a number outside the range of PostgreSQL"
LONE_SURROGATE = "contains a lone surrogate, which is not a character"
_SURROGATE_ERROR = re.compile(r"(?:surrogate pair|end of hex escape) \(byte ([0-9]+)\)")
# Maps opening brackets to +1 and closing brackets to -1. All other bytes are removed.
_NESTING = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_NESTING = bytes(set(range(256)) - set(b"[{]}"))

# The maximum number of digits before and after the decimal point in PostgreSQL's numeric.
_DIGITS_BEFORE, _DIGITS_AFTER = 131_072, 16_383
# PostgreSQL stores `1e131071` as 131,072 digits. A small body must not become a huge row.
_DIGITS_IN_ALL = 1_000_000
# A longer number is always out of range.
_LONGEST_NUMBER = 200_000

# The bytes that one step checks. A step holds the interpreter lock for a few milliseconds at most.
STEP_BYTES = 128 * 1024
# In a pause between steps, the event loop gets the interpreter lock at once.
_PAUSE_SECONDS = 0.0005

# Replaces each character of a number by a zero, and the beginning of an exponent by a small letter.
_NUMBERS_ONLY = bytes(b"0 e"[(byte not in b"0123456789+-.") + (byte in b"eE")] for byte in range(256))

_Getter = Callable[[Request], Any]

_raw_decoder = msgspec.json.Decoder(Raw)


def is_certainly_valid(request: Request, body: bytes, limits: Settings) -> bool:
    """Return whether `find_problems` certainly finds nothing, because the body is short and unsuspicious.

    The function searches the whole body once, and not again each of its values.

    Args:
        request: The decoded request.
        body: The body, or a longer text with the same values.
        limits: The settings with the limits.
    """
    if len(body) > STEP_BYTES or (b"\\" in body and b"\\u0000" in body):
        return False
    numbers = body.translate(_NUMBERS_ONLY)
    if b"0e000" in numbers and _NUMBER_WITH_LARGE_EXPONENT.search(body):
        return False
    if len(body) > _MANY_DIGITS and b"0" * _MANY_DIGITS in numbers:
        return False
    # Every bracket needs a closing one, so a short value cannot be deep.
    most = min(2 * limits.max_depth, limits.max_match_bytes, limits.max_text_chars)
    return _are_short([request], most if len(body) > most else None)


def _are_short(requests: Sequence[Request], most: int | None) -> bool:
    """Return whether no value of requests of one type is longer than `most`, if given, and none is a time."""
    values, times, lists = _getters(type(requests[0]))
    if most is not None:
        for get in values:
            if max(map(len, filter(None, map(get, requests))), default=0) > most:
                return False
    for get in times:
        if any(map(get, requests)):
            return False
    return all(_are_short(items, most) for get in lists for items in map(get, requests) if items)


@cache
def _getters(struct: type[Request]) -> tuple[list[_Getter], list[_Getter], list[_Getter]]:
    """Return functions that return a field each: the JSON values and texts, the times, and the lists."""
    fields = _fields(struct)
    return (
        [attrgetter(name) for name, kind in fields if kind in (Raw, str)],
        [attrgetter(name) for name, kind in fields if kind is datetime],
        [attrgetter(name) for name, kind in fields if kind is list],
    )


def find_problems(request: Request, limits: Settings, path: str = "") -> Iterator[FieldError]:
    """Yield the invalid values of a request.

    Args:
        request: The decoded request.
        limits: The settings with the limits.
        path: The position of the request in the body, such as `items[13].`.
    """
    for name, kind in _fields(type(request)):
        value = getattr(request, name)
        if value is None or value is NULL:
            # The fast case: most fields are absent.
            continue
        if kind is list:
            for place, item in enumerate(value):
                yield from find_problems(item, limits, f"{path}{name}[{place}].")
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
    """Return whether a time can be converted to UTC. Its offset may move it out of the calendar."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _text_problem(value: str, limits: Settings) -> str | None:
    if len(value) > limits.max_text_chars:
        return f"is {len(value)} characters long, and the limit is {limits.max_text_chars}"
    return _NUL if "\x00" in value else None


def json_problem(value: bytes, limits: Settings, *, matched: bool) -> str | None:
    """Return an error message about a JSON value, or None if it is valid.

    Args:
        value: The JSON text.
        limits: The settings with the limits.
        matched: Whether the value is a `needs` or `skills`, which have a smaller limit.
    """
    if matched and len(value) > limits.max_match_bytes:
        return f"is {len(value)} bytes long, and the limit is {limits.max_match_bytes}"
    if _is_certainly_valid(value, limits.max_depth):
        return None
    return _check_in_steps(value, limits.max_depth)


def lone_surrogate(body: bytes) -> int | None:
    """Return the offset of the lone escaped surrogate for which the decoder refuses a body, or None."""
    try:
        # Without the spaces, the decoder may report a truncated input, because it expects the other
        # surrogate.
        _raw_decoder.decode(body + b" " * 6)
    except msgspec.DecodeError as error:
        if place := _SURROGATE_ERROR.search(str(error)):
            return int(place[1]) - 1
    return None


def _is_certainly_valid(value: bytes, max_depth: int) -> bool:
    """Return whether a short value is certainly valid. A long one never is."""
    size = len(value)
    if size > STEP_BYTES or b"\\u0000" in value:
        return False
    # Every bracket needs a closing one, so a short value cannot be deep.
    if size > 2 * max_depth and value.count(b"[") + value.count(b"{") > max_depth:
        return False
    return not _may_hold_large_number(value)


def _check_in_steps(value: bytes, max_depth: int) -> str | None:
    """Check well-formed JSON in steps. Return an error message, or None if it is valid."""
    depth = digits = in_string = 0
    end_of_text = number = b""
    for piece in _pieces(value):
        if b"\\u0000" in end_of_text + piece:
            return _NUL
        end_of_text = piece[-5:]
        # Quotes separate the parts. So the parts are alternately outside and inside of strings.
        parts = piece.split(b'"')
        outside = b" ".join(parts[in_string::2])
        in_string = (in_string + len(parts) - 1) % 2
        nesting = outside.translate(_NESTING, _NO_NESTING)
        opened = nesting.count(b"\x01")
        may_be_deep = depth + opened > max_depth
        if may_be_deep and max(accumulate(array("b", nesting), initial=depth)) > max_depth:
            return f"is nested deeper than {max_depth}"
        depth += 2 * opened - len(nesting)
        # The rest of a number may be in the next piece.
        text = number + outside
        whole = text.rstrip(_IN_NUMBERS)
        number = text[len(whole) :]
        digits += _digits(whole)
        if digits > _DIGITS_IN_ALL or len(number) > _LONGEST_NUMBER:
            return _OUT_OF_RANGE
    return _OUT_OF_RANGE if digits + _digits(number) > _DIGITS_IN_ALL else None


def _pieces(value: bytes) -> Iterator[bytes]:
    """Yield a value in pieces, with escaped backslashes and quotes replaced by dots.

    The generator pauses between the pieces for the other threads.
    """
    start = 0
    while start < len(value):
        if start:
            time.sleep(_PAUSE_SECONDS)
        piece = value[start : start + STEP_BYTES]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            # The last backslash escapes the next character.
            piece = value[start : start + STEP_BYTES + 1]
        start += len(piece)
        yield piece.replace(b"\\\\", b"..").replace(b'\\"', b"..")


def _may_hold_large_number(value: bytes) -> bool:
    if _LARGE_EXPONENT.search(value) or _LARGE_EXPONENT_IN_CAPITALS.search(value):
        return True
    return len(value) > _MANY_DIGITS and b"0" * _MANY_DIGITS in value.translate(_DIGITS_ONLY)


def _digits(text: bytes) -> int:
    """Return the number of digits of the large numbers in JSON text that has no strings, without exponents.

    A number out of range counts as more digits than a value may have.
    """
    if not _may_hold_large_number(text):
        return 0
    digits = 0
    for match in _LARGE_NUMBER.finditer(text):
        try:
            number = Decimal(match[0].decode())
        except InvalidOperation:  # outside the range of Decimal, which is larger than PostgreSQL's
            return _DIGITS_IN_ALL + 1
        before, after = number.adjusted() + 1, -int(number.as_tuple().exponent)
        if before > _DIGITS_BEFORE or after > _DIGITS_AFTER:
            return _DIGITS_IN_ALL + 1
        digits += max(before, 0) + max(after, 0)
        if digits > _DIGITS_IN_ALL:
            break
    return digits
