"""What a request may hold: sizes, depths, and only JSON that PostgreSQL's jsonb can keep.

A body is checked with a few passes of C over its bytes; what looks suspicious is looked at closely.
"""

import re
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import accumulate
from typing import get_args, get_origin, get_type_hints

from msgspec import Raw, Struct

from broker.api.expansion import expands_beyond
from broker.schemas import NULL, FieldError, Request
from broker.settings import Settings

_MATCHED = ("needs", "skills")

# Possessive: else every byte of a long text would be remembered as a place to go back to.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# What a number out of range has: an exponent of three digits, or very many digits. Texts may have them, too.
# Two, as what begins with a letter is found many times faster than what begins with one of several.
_LARGE_EXPONENT = re.compile(rb"e[+-]?[0-9]{3}")
_LARGE_EXPONENT_IN_CAPITALS = re.compile(rb"E[+-]?[0-9]{3}")
_MANY_DIGITS = 1_000
_DIGITS_ONLY = bytes(ord("0") if byte in b"0123456789." else ord(" ") for byte in range(256))
_NUMBER = re.compile(rb"-?[0-9][0-9.]*+(?:[eE][+-]?(?P<exponent>[0-9]+))?")
# Escapes and pairs that are in order are passed over, so what is left to match is alone.
_SURROGATES = re.compile(
    rb"\\[^u]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD](?P<alone>[89a-fA-F])", re.DOTALL
)
LONE_SURROGATE = "holds a lone surrogate, which is no character"
# For each byte: +1 opens, -1 closes, everything else is taken out.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_STEP = bytes(set(range(256)) - set(b"[{]}"))

# PostgreSQL's numeric: this many digits before the point, and after it.
_DIGITS_BEFORE, _DIGITS_AFTER = 131_072, 16_383
# Written out, `1e131071` is 131,072 digits: a small body must not become a huge row.
_DIGITS_IN_ALL = 1_000_000


def problems(request: Request, settings: Settings, path: str = "") -> Iterator[FieldError]:
    """What is wrong with a request that is well-formed otherwise.

    Args:
        request: The decoded request.
        settings: The limits.
        path: Where the request stands in the body, like `items[13].`.
    """
    for name, kind in _fields(type(request)):
        value = getattr(request, name)
        if value is None or value is NULL:
            # Left out, as most of it is.
            continue
        if kind is list:
            for place, item in enumerate(value):
                yield from problems(item, settings, f"{path}{name}[{place}].")
        elif isinstance(value, Raw):
            if message := json_problem(bytes(value), settings, matched=name in _MATCHED):
                yield FieldError(field=path + name, message=message)
        elif isinstance(value, str) and (message := _text_problem(value, settings)):
            yield FieldError(field=path + name, message=message)
        elif isinstance(value, datetime) and not _in_range(value):
            yield FieldError(field=path + name, message="is out of range")


@cache
def _fields(struct: type[Struct]) -> tuple[tuple[str, type], ...]:
    """The fields worth a look: JSON values, texts, times, and lists of requests."""
    found: list[tuple[str, type]] = []
    for name, hint in get_type_hints(struct).items():
        kinds = {hint, *get_args(hint)}
        kinds |= {get_origin(kind) for kind in kinds}
        found += [(name, kind) for kind in (Raw, str, list, datetime) if kind in kinds]
    return tuple(found)


def _in_range(value: datetime) -> bool:
    """Whether a time is one in UTC, too: the offset may carry it out of the calendar."""
    try:
        value.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _text_problem(value: str, settings: Settings) -> str | None:
    if len(value) > settings.max_text_chars:
        return f"is {len(value)} characters long; the limit is {settings.max_text_chars}"
    return "holds \\u0000, which PostgreSQL cannot keep" if "\x00" in value else None


def json_problem(value: bytes, settings: Settings, *, matched: bool) -> str | None:
    """What is wrong with a JSON value, in words; `matched`: it is a `needs` or `skills`."""
    if matched and len(value) > settings.max_match_bytes:
        return f"is {len(value)} bytes long; the limit is {settings.max_match_bytes}"
    if _may_be_deep(value, settings.max_depth) and _depth(value) > settings.max_depth:
        return f"is nested deeper than {settings.max_depth}"
    if b"\\u" in value:
        escapes = value.replace(b"\\\\", b"")
        if b"\\u0000" in escapes:
            return "holds \\u0000, which PostgreSQL cannot keep"
    if _may_hold_big_number(value) and not _numbers_fit(value):
        return "holds a number out of PostgreSQL's range"
    if expands_beyond(value, settings.max_body_bytes):
        return f"holds numbers that take more than {settings.max_body_bytes} bytes without their exponents"
    return None


def lone_surrogate(body: bytes) -> int | None:
    """Where in a text an escaped surrogate stands alone."""
    return next((found.start() for found in _SURROGATES.finditer(body) if found["alone"]), None)


def _may_be_deep(value: bytes, limit: int) -> bool:
    """What is opened is closed again, so that a short value is not deep."""
    return len(value) > 2 * limit and value.count(b"[") + value.count(b"{") > limit


def _depth(value: bytes) -> int:
    """How deep arrays and objects nest; brackets in strings do not count."""
    steps = _STRING.sub(b"", value).translate(_STEPS, _NO_STEP)
    return max(accumulate(array("b", steps)), default=0)


def _may_hold_big_number(value: bytes) -> bool:
    if _LARGE_EXPONENT.search(value) or _LARGE_EXPONENT_IN_CAPITALS.search(value):
        return True
    return len(value) > _MANY_DIGITS and b"0" * _MANY_DIGITS in value.translate(_DIGITS_ONLY)


def _numbers_fit(value: bytes) -> bool:
    in_all = 0
    for found in _NUMBER.finditer(_STRING.sub(b"", value)):
        if len(found["exponent"] or b"") < 3 and len(found[0]) < _MANY_DIGITS:
            continue
        try:
            number = Decimal(found[0].decode())
        except InvalidOperation:  # out of Decimal's own range, which is larger
            return False
        before, after = number.adjusted() + 1, -int(number.as_tuple().exponent)
        if before > _DIGITS_BEFORE or after > _DIGITS_AFTER:
            return False
        in_all += max(before, 0) + max(after, 0)
        if in_all > _DIGITS_IN_ALL:
            return False
    return True
