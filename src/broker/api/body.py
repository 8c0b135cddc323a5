"""Request bodies: JSON, decoded once, every offending field named.

Litestar's own parsing cannot hand JSON through untouched, answers 500 to invalid UTF-8 and to deep
nesting, and names one error only. Its serialization plugin lets us do that: a handler that declares
`data: SomeRequest` gets it from here.
"""

import re
import time
from collections.abc import Generator, Iterator
from functools import cache
from itertools import islice
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import msgspec
from litestar import Request as Connection
from litestar.dto import AbstractDTO, DTOConfig, DTOFieldDefinition
from litestar.exceptions import InternalServerException
from litestar.plugins import SerializationPlugin
from litestar.typing import FieldDefinition
from msgspec import Raw

from broker.api import limits
from broker.errors import BadRequest, MalformedJson, UnsupportedMediaType, ValidationFailed
from broker.owners import FRESH_SECONDS
from broker.schemas import FieldError, Request
from broker.settings import Settings

_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"(?:\s*:)?|[\[\]{},]', re.DOTALL)
_SEARCHED = 2**20
# So many that are wrong are told; whoever has more will ask again.
_MOST_ERRORS = 1_000


class BodyOrNothing(Connection[Any, Any, Any]):
    """A request whose missing body is an empty object: then every field has its default, or is missed."""

    async def body(self) -> bytes:
        """The body's bytes.

        Who has sent them slowly has to be welcome still.

        Raises:
            BadRequest: The client went before it had sent them all: nobody will read this.
        """
        began = time.monotonic()
        try:
            body = await super().body() or b"{}"
        except InternalServerException as error:
            raise BadRequest(error.detail) from None
        if time.monotonic() - began > FRESH_SECONDS:
            await self.route_handler.authorize_connection(self)
        return body


class JsonBodies(SerializationPlugin):
    """Has Litestar decode our requests our way."""

    def supports_type(self, field_definition: FieldDefinition) -> bool:
        """Whether the handler takes one of our requests."""
        return field_definition.is_subclass_of(Request)

    def create_dto_for_type(self, field_definition: FieldDefinition) -> type[AbstractDTO[Any]]:
        """What decodes it."""
        return type(
            "JsonBody", (_JsonBody,), {"model_type": field_definition.annotation, "config": DTOConfig()}
        )


class _JsonBody(AbstractDTO[Any]):
    def decode_bytes(self, value: bytes) -> Any:
        media_type, _ = cast("Connection[Any, Any, Any]", self.asgi_connection).content_type
        if media_type not in ("", "application/json") and not media_type.endswith("+json"):
            raise UnsupportedMediaType
        return decode(value, self.model_type, self.asgi_connection.app.state.settings)

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Litestar's own backends are not used."""

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False


def decode(body: bytes, form: type[Request], settings: Settings) -> Request:
    """A request from its body.

    Args:
        body: JSON in UTF-8.
        form: The request it has to be.
        settings: The limits it has to keep.

    Raises:
        MalformedJson: It is not JSON, or not UTF-8.
        ValidationFailed: It is not such a request; every offending field is named.
    """
    try:
        request = _decoded(body, form)
    except RecursionError:
        message = f"is nested deeper than {settings.max_depth}"
        raise ValidationFailed(
            [FieldError(field=_field_at(body, depth=settings.max_depth), message=message)]
        ) from None
    if problems := list(islice(limits.problems(request, settings), _MOST_ERRORS)):
        raise ValidationFailed(problems)
    return request


def _decoded(body: bytes, form: type[Request]) -> Request:
    try:
        # The decoder does not look at what it passes through.
        str(body, "utf-8")
        request: Request = _decoder(form).decode(body)
    except msgspec.ValidationError as error:
        _well_formed(body)
        explained = list(islice(_explain(body, form), _MOST_ERRORS))
        raise ValidationFailed(explained or [_located(error)]) from None
    except UnicodeDecodeError as error:
        raise MalformedJson(f"The body is not UTF-8: byte {error.start} cannot be read.") from None
    except msgspec.DecodeError as error:
        if lone := limits.lone_surrogate(body):
            field = FieldError(field=_field_at(body, offset=lone), message=limits.LONE_SURROGATE)
            raise ValidationFailed([field]) from None
        raise _malformed(error) from None
    return request


def _well_formed(body: bytes) -> None:
    """A wrong type is reported where the decoder met it; the rest may still be no JSON."""
    try:
        _decoder(Raw).decode(body)
    except msgspec.DecodeError as error:
        raise _malformed(error) from None


def _malformed(error: msgspec.DecodeError) -> MalformedJson:
    return MalformedJson(f"The body is not valid JSON: {_plainly(error)}.")


@cache
def _decoder(form: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(form)


def _explain(body: bytes, form: type[Request], path: str = "") -> Iterator[FieldError]:
    """Every field that is not as it should be: the decoder itself stops at the first."""
    try:
        given = _decoder(dict[str, Raw]).decode(body)
    except msgspec.ValidationError:
        yield FieldError(field=path.rstrip(".") or "body", message="is not an object")
        return
    hints = _hints(form)
    for name in given.keys() - hints.keys():
        yield FieldError(field=path + name, message="is no field of this request")
    for field in msgspec.structs.fields(form):
        if field.name in given:
            yield from _explain_field(bytes(given[field.name]), hints[field.name], path + field.name)
        elif field.required:
            yield FieldError(field=path + field.name, message="is missing")


def _explain_field(value: bytes, hint: Any, path: str) -> Iterator[FieldError]:
    try:
        _decoder(hint).decode(value)
    except msgspec.ValidationError as error:
        item = _item_type(hint)
        items = _items(value, hint) if item else None
        if not items:
            yield FieldError(field=path, message=_plainly(error))
            return
        found = False
        for place, each in enumerate(items):
            for problem in _explain(bytes(each), item, f"{path}[{place}]."):
                found = True
                yield problem
        if not found:
            yield FieldError(field=path, message=_plainly(error))


def _item_type(hint: Any) -> Any:
    """The request that a list is of; none where it is no such list."""
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    if get_origin(bare) is not list:
        return None
    [item] = get_args(bare)
    return item if isinstance(item, type) and issubclass(item, Request) else None


def _items(value: bytes, hint: Any) -> list[Raw] | None:
    """The items of a list; none: it is no list, or not as long as it may be."""
    try:
        items: list[Raw] = _decoder(Annotated[list[Raw], *hint.__metadata__]).decode(value)
    except msgspec.ValidationError:
        return None
    return items


@cache
def _hints(form: type[Request]) -> dict[str, Any]:
    return get_type_hints(form, include_extras=True)


def _located(error: msgspec.ValidationError) -> FieldError:
    message, _, place = str(error).partition(" - at `$")
    return FieldError(field=place.strip(".`") or "body", message=message)


def _plainly(error: Exception) -> str:
    """The decoder's message, in a sentence that begins with the field or the body."""
    message = str(error).partition(" - at ")[0]
    message = message.removeprefix("JSON is malformed: ")
    return message[:1].lower() + message[1:]


def _field_at(body: bytes, *, depth: int | None = None, offset: int | None = None) -> str:
    """The field that holds what the decoder stumbled over, like `items[13].needs`.

    Args:
        body: Well-formed up to there; only its beginning is searched, so that it takes no time.
        depth: Where brackets nest deeper than this.
        offset: Or: at this byte.
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
    match names:
        case ["items", int(place), str(name), *_]:
            return f"items[{place}].{name}"
        case [str(name), *_] if name:
            return name
    return "body"
