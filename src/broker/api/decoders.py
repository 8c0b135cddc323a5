"""Decoders of requests, one for each, and one of each that stops early at a list that is too long."""

import threading
from functools import cache
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from broker.schemas import Request

# What the decoder says of a list that is too long.
TOO_LONG = "Expected `array` of length <= "


@cache
def decoder(form: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type."""
    return msgspec.json.Decoder(form)


def read(value: bytes | Raw, form: Any) -> Any:
    """Decode a value; may raise what the decoder raises."""
    _items_decoded.count = 0
    return decoder(form).decode(value)


@cache
def hints(form: type[Request]) -> dict[str, Any]:
    """Return the fields of a request with their types, constraints included."""
    return get_type_hints(form, include_extras=True)


def item_type(hint: Any) -> Any:
    """Return the request that a list is of; None where it is no such list."""
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(bare) is not list:
        return None
    [item] = get_args(bare)
    return item if isinstance(item, type) and issubclass(item, Request) else None


class _Items(threading.local):
    """How many items of a body this thread has decoded."""

    count = 0


_items_decoded = _Items()


@cache
def counted(form: type[Request]) -> type[Request]:
    """Return a form like this one whose decoder stops at the first item too many.

    A decoder of its own accord counts the items of a list only after it has decoded millions of them.
    """
    for name, hint in hints(form).items():
        item = item_type(hint)
        if item is not None:
            most = next(meta.max_length for meta in hint.__metadata__ if meta.max_length)
            counting: Any = _counting(item, most)
            items = Annotated[list[counting], *hint.__metadata__]
            return cast("type[Request]", msgspec.defstruct(form.__name__, [(name, items)], bases=(form,)))
    return form


def _counting(item: type[Request], most: int) -> type[msgspec.Struct]:
    def count(_: Request) -> None:
        _items_decoded.count += 1
        if _items_decoded.count > most:
            raise ValueError(f"{TOO_LONG}{most}")

    return msgspec.defstruct(item.__name__, [], bases=(item,), namespace={"__post_init__": count})
