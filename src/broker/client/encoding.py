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

    msgspec encodes dataclasses, attrs classes, times, enums, sets, UUIDs and bytes (as Base64). It encodes
    NaN and infinity as null. This function also encodes a path as a string, an exception as its message, and
    numpy arrays, pydantic models and similar values as the values that they hold.

    Raises:
        TypeError: The value contains a type that has no JSON form. The message names the type.
        ValueError: The value contains itself, is nested too deeply, or has a lone surrogate in a string.
        Exception: A method of the value raised it.
    """
    try:
        return msgspec.json.encode(value, enc_hook=as_json)
    except RecursionError:
        raise ValueError("the value contains itself or is nested too deeply") from None


def as_json(value: Any) -> Any:
    """Return a value that msgspec can encode, in place of one that it cannot.

    The function imports no other library. It recognizes the values of a library by their methods.

    Raises:
        TypeError: The value has no JSON form. The message names its type.
    """
    if isinstance(value, type):
        raise _refusal(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return _of_array(value, tolist)
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic
        return dump()
    if isinstance(value, tuple):  # msgspec calls this for tuples only if they are keys
        raise TypeError("the key of a dict is a tuple, which has no JSON form; use a string as the key")
    for types, convert in _CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    raise _refusal(type(value))


def message_of(error: BaseException) -> str:
    """Return the message of an exception, or its type if it has none."""
    return str(error) or type(error).__name__


# Conversions of types that msgspec does not know. The first match counts.
_CONVERSIONS: list[tuple[Any, Callable[[Any], Any]]] = [
    (os.PathLike, os.fsdecode),
    (BaseException, message_of),
    # These values may be keys of a dict. The conversion is the same as in the json module.
    ((bool, NoneType), lambda value: msgspec.json.encode(value).decode()),
    (str, str.__str__),
    (Integral, int),
    (Real, float),
    (Mapping, dict),
    ((Sequence, AbstractSet, ValuesView), list),
]


def _of_array(value: Any, tolist: Any) -> Any:
    """Return the values of an array or a scalar of numpy or a similar library."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind in ("M", "m"):
        # Python times have microseconds. numpy would turn nanoseconds into plain integers.
        return value.astype(f"{kind}8[us]").tolist()
    items = tolist()
    # A scalar without a Python type, like numpy.longdouble.
    return float(items) if type(items) is type(value) else items


def _refusal(type_: type) -> TypeError:
    module = "" if type_.__module__ == "builtins" else f"{type_.__module__}."
    return TypeError(
        f"a value of type {module}{type_.__qualname__} has no JSON form; use numbers, strings, lists or"
        " dicts, or write it to a file and use the path"
    )
