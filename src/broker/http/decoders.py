"""Decoders of request structs, with variants that stop early if a list is too long."""

import threading
from functools import cache
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw

from broker.schemas.values import Request

# The decoder's message about a list that is too long.
TOO_LONG = "Expected `array` of length <= "


@cache
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of a type."""
    return msgspec.json.Decoder(kind)


def read(value: bytes | Raw, kind: Any) -> Any:
    """Decode a value.

    Raises:
        msgspec.DecodeError: The value does not fit the type.
    """
    _items_decoded.count = 0
    return decoder(kind).decode(value)


@cache
def field_types(kind: type[Request]) -> dict[str, Any]:
    """Return the fields of a request with their types and constraints."""
    return get_type_hints(kind, include_extras=True)


def item_type(hint: Any) -> Any:
    """Return the type of the items of a list, or None if it is not a list of request structs."""
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(bare) is not list:
        return None
    [item] = get_args(bare)
    return item if isinstance(item, type) and issubclass(item, Request) else None


class _Items(threading.local):
    """The number of items that this thread has decoded of a body."""

    count = 0


_items_decoded = _Items()


@cache
def with_counter(kind: type[Request]) -> type[Request]:
    """Return a variant of a request struct whose decoder stops when a list exceeds its maximum length.

    A usual decoder checks the length only after it has decoded all items, possibly millions.
    """
    for name, hint in field_types(kind).items():
        item = item_type(hint)
        if item is not None:
            counting: Any = _counting(item, _most(hint))
            items = Annotated[list[counting], *hint.__metadata__]
            return cast("type[Request]", msgspec.defstruct(kind.__name__, [(name, items)], bases=(kind,)))
    return kind


def without_duplicates(body: bytes, kind: type[Request]) -> bytes:
    """Return a body without duplicate members. The last member with a name replaces the others.

    The decoder checks every member, which takes seconds if a body repeats millions of them.

    Args:
        body: The JSON text.
        kind: A type that `with_counter` returned.

    Raises:
        msgspec.ValidationError: The request has an unknown field, or a list has too many items.
    """
    return msgspec.json.encode(read(body, _raw_struct_with_items(kind)))


@cache
def raw_struct(kind: type[Request]) -> type[msgspec.Struct]:
    """Return a struct with the same fields. Each is any JSON value or absent. It ignores unknown fields."""
    return _struct_of(kind, dict.fromkeys(field_types(kind), Raw), is_strict=False)


@cache
def _raw_struct_with_items(kind: type[Request]) -> type[msgspec.Struct]:
    fields: dict[str, Any] = {}
    for name, hint in field_types(kind).items():
        fields[name] = Raw
        if item := item_type(hint):
            raw_item = _struct_of(item, dict.fromkeys(field_types(item), Raw), is_strict=True)
            fields[name] = list[_counting(raw_item, _most(hint))]  # type: ignore[misc]
    return _struct_of(kind, fields, is_strict=True)


def _struct_of(kind: type[Request], fields: dict[str, Any], *, is_strict: bool) -> type[msgspec.Struct]:
    optional = [(name, field | msgspec.UnsetType, msgspec.UNSET) for name, field in fields.items()]
    return msgspec.defstruct(kind.__name__, optional, kw_only=True, forbid_unknown_fields=is_strict)


def _most(hint: Any) -> int:
    """Return the maximum number of items of a list."""
    most: int = next(meta.max_length for meta in hint.__metadata__ if meta.max_length)
    return most


def _counting(item: type[msgspec.Struct], most: int) -> type[msgspec.Struct]:
    def count(_: msgspec.Struct) -> None:
        _items_decoded.count += 1
        if _items_decoded.count > most:
            raise ValueError(f"{TOO_LONG}{most}")

    return msgspec.defstruct(item.__name__, [], bases=(item,), namespace={"__post_init__": count})
