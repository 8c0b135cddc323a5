"""Decoders of requests, one for each, and one of each that stops early at a list that is too long."""

import threading
from functools import cache
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from broker.schemas.values import Request

# The decoder's message about a list that is too long.
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
            counting: Any = _counting(item, _most(hint))
            items = Annotated[list[counting], *hint.__metadata__]
            return cast("type[Request]", msgspec.defstruct(form.__name__, [(name, items)], bases=(form,)))
    return form


def once(body: bytes, form: type[Request]) -> bytes:
    """Return a body with each member once, the last where several have the same name.

    The decoder checks each of them, which takes seconds where there are millions.

    Args:
        body: JSON.
        form: What the body is, as `counted` returns it.

    Raises:
        msgspec.ValidationError: It has a field that is none of the request's, or a list has too many items.
    """
    return msgspec.json.encode(read(body, _raw_form_with_items(form)))


@cache
def raw_form(form: type[Request]) -> type[msgspec.Struct]:
    """Return a form with the same fields, each any JSON value or absent; it ignores all others."""
    fields = [(name, Raw | msgspec.UnsetType, msgspec.UNSET) for name in hints(form)]
    return msgspec.defstruct(form.__name__, fields, kw_only=True)


@cache
def _raw_form_with_items(form: type[Request]) -> type[msgspec.Struct]:
    fields: dict[str, Any] = {}
    for name, hint in hints(form).items():
        item = item_type(hint)
        fields[name] = list[_counting(_strict(raw_form(item)), _most(hint))] if item else Raw  # type: ignore[misc]
    return msgspec.defstruct(
        form.__name__,
        [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in fields.items()],
        kw_only=True,
        forbid_unknown_fields=True,
    )


def _strict(form: type[msgspec.Struct]) -> type[msgspec.Struct]:
    return msgspec.defstruct(form.__name__, [], bases=(form,), forbid_unknown_fields=True)


def _most(hint: Any) -> int:
    """Return how many items a list may have."""
    most: int = next(meta.max_length for meta in hint.__metadata__ if meta.max_length)
    return most


def _counting(item: type[msgspec.Struct], most: int) -> type[msgspec.Struct]:
    def count(_: msgspec.Struct) -> None:
        _items_decoded.count += 1
        if _items_decoded.count > most:
            raise ValueError(f"{TOO_LONG}{most}")

    return msgspec.defstruct(item.__name__, [], bases=(item,), namespace={"__post_init__": count})
