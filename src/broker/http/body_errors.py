"""Explain the errors in a body: find every invalid field and name it like `items[13].needs`."""

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from broker.http.decoders import TOO_LONG, decoder, field_types, item_type, raw_struct, read
from broker.schemas.problems import FieldError
from broker.schemas.values import Request

# The pattern also accepts a string that is cut off at the end of the searched text. Otherwise the search
# would try each quote in the string as the start of another string.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"(?:\s*:)?|\\?\Z)|[\[\]{},]', re.DOTALL)
_SEARCHED = 2**20
# The maximum length of a name or message in an error, which may repeat input of the client.
_MOST_CHARACTERS = 300
# The errors of a value with more members or items are not explained one by one.
MOST_PARTS = 200_000


def explain(body: bytes, kind: type[Request], path: str = "") -> Iterator[FieldError]:
    """Yield every invalid field of a request. The decoder itself stops at the first one.

    Args:
        body: The JSON text of the request.
        kind: The type of the request.
        path: The position of the request in the whole body, such as `items[13].`.
    """
    try:
        members = _members(body, kind)
    except msgspec.ValidationError:
        yield FieldError(field=path.rstrip(".") or "body", message="is not an object")
        return
    fields = field_types(kind)
    for name in members.keys() - fields.keys():
        yield FieldError(field=path + name[:_MOST_CHARACTERS], message="is not a field of this request")
    for field in msgspec.structs.fields(kind):
        if field.name in members:
            yield from _explain_field(bytes(members[field.name]), fields[field.name], path + field.name)
        elif field.required:
            yield FieldError(field=path + field.name, message="is missing")


def _members(body: bytes, kind: type[Request]) -> dict[str, Raw]:
    """Return the members of an object. If there are very many, return only the fields of the request."""
    if body.count(b":") <= MOST_PARTS:
        members: dict[str, Raw] = decoder(dict[str, Raw]).decode(body)
        return members
    known = decoder(raw_struct(kind)).decode(body)
    values = {name: getattr(known, name) for name in known.__struct_fields__}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def _explain_field(value: bytes, hint: Any, path: str) -> Iterator[FieldError]:
    try:
        read(value, hint)
    except msgspec.ValidationError as error:
        has_item_errors = False
        item = item_type(hint)
        for place, each in enumerate(_items(value, hint) if item else ()):
            for problem in explain(bytes(each), item, f"{path}[{place}]."):
                has_item_errors = True
                yield problem
        if not has_item_errors:
            yield to_field_error(error, path)


def _items(value: bytes, hint: Any) -> list[Raw]:
    """Return the items of a list, or no items if it is no list, has a wrong length or too many parts."""
    if value.count(b",") > MOST_PARTS:
        return []
    try:
        items: list[Raw] = decoder(Annotated[list[Raw], *hint.__metadata__]).decode(value)
    except msgspec.ValidationError:
        return []
    return items


def to_field_error(error: msgspec.ValidationError, path: str = "") -> FieldError:
    """Return an error of the decoder as a field and a message.

    Args:
        error: The error.
        path: The field that the decoder decoded. Empty for the whole body.
    """
    message = readable_message(error)
    _, _, place = str(error).partition(" - at `$")
    if message.startswith(TOO_LONG.lower()):
        # The list is wrong, not the item where the decoder stopped.
        place = place.rpartition("[")[0]
    return FieldError(field=(path + place.strip("`")).lstrip(".") or "body", message=message)


def readable_message(error: Exception) -> str:
    """Return the message of the decoder, without the position, to be read after the name of a field."""
    message = str(error).partition(" - at ")[0]
    message = message.removeprefix("JSON is malformed: ")[:_MOST_CHARACTERS]
    return message[:1].lower() + message[1:]


def field_at(body: bytes, *, depth: int | None = None, offset: int | None = None) -> str:
    """Return the name of the field at a position in a body, such as `items[13].needs`.

    Args:
        body: JSON that is well-formed up to the position. To bound the time, only its beginning is searched.
        depth: The position is the first bracket that is nested deeper than this.
        offset: The position is this byte.
    """
    names: list[str | int] = []
    for token in _TOKEN.finditer(body, 0, _SEARCHED):
        text = token[0]
        if (offset is not None and token.end() > offset) or (depth is not None and len(names) > depth):
            break
        if text in b"[{":
            names.append(0 if text == b"[" else "")
        elif text in b"]}":
            del names[-1:]
        elif text == b"," and names and isinstance(names[-1], int):
            names[-1] += 1
        elif text.endswith(b":") and names:
            names[-1] = text[: text.rindex(b'"')].strip(b'"').decode()
    else:
        if len(body) > _SEARCHED and names[:1] == ["items"]:
            # The position may be in any of the items that follow.
            return "items"
    match names:
        case ["items", int(place), str(name), *_]:
            return f"items[{place}].{name}"
        case [str(name), *_] if name:
            return name
    return "body"
