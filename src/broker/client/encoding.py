"""Encode Python values as JSON: results, reports, payloads, arguments."""

import os
from collections.abc import Callable, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from types import NoneType
from typing import Any

import msgspec


def encoded(value: Any) -> bytes:
    """Encode a value as JSON.

    msgspec encodes dataclasses, attrs classes, times, enums, sets, UUIDs, bytes (as Base64), NaN and infinity
    (as null). In addition, a path becomes its text and an exception its message, and numpy arrays, pydantic
    models and the like become the values that they hold.

    Raises:
        TypeError: It holds a value of a type that JSON cannot represent; the message names the type.
        ValueError: It contains itself, is nested too deeply, or has a lone surrogate in a text.
        Exception: Whatever the methods of a value raise.
    """
    try:
        return msgspec.json.encode(value, enc_hook=as_json)
    except RecursionError:
        raise ValueError("it contains itself, or is nested too deeply") from None


def as_json(value: Any) -> Any:
    """Return a value that msgspec can encode in place of one that it cannot.

    It imports no library for that: it recognizes the values of a library by their methods.

    Raises:
        TypeError: JSON cannot represent the value; the message names the type.
    """
    if isinstance(value, type):
        raise _refusal(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return _of_array(value, tolist)
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic
        return dump()
    if isinstance(value, tuple):  # msgspec asks for keys only
        raise TypeError("a tuple is the key of a dict, which JSON has no form for: use a text")
    for types, convert in _CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    raise _refusal(type(value))


def message_of(error: BaseException) -> str:
    """Return the message of an exception, or its type if it has none."""
    return str(error) or type(error).__name__


# The conversions of types that msgspec does not know. The first match counts.
_CONVERSIONS: list[tuple[Any, Callable[[Any], Any]]] = [
    (os.PathLike, os.fsdecode),
    (BaseException, message_of),
    # As keys, in the way of the json module.
    ((bool, NoneType), lambda value: msgspec.json.encode(value).decode()),
    (str, str.__str__),
    (Integral, int),
    (Real, float),
    (Mapping, dict),
    ((Sequence, AbstractSet, ValuesView), list),
]


def _of_array(value: Any, tolist: Any) -> Any:
    """Return the values of an array, or the value of a scalar, of numpy or a similar library."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m"):
        # Python has microseconds. numpy would turn nanoseconds into plain integers.
        return value.astype(f"{kind}8[us]").tolist()
    items = tolist()
    # A scalar without a Python type, like numpy.longdouble.
    return float(items) if type(items) is type(value) else items


def _refusal(type_: type) -> TypeError:
    module = "" if type_.__module__ == "builtins" else f"{type_.__module__}."
    return TypeError(
        f"a {module}{type_.__qualname__} is no JSON: use numbers, texts, lists, dicts, or the path of a file"
    )
