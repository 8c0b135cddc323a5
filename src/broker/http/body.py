"""Decode request bodies once, and report every invalid field.

Litestar's own parsing has three defects: it changes JSON values, responds with 500 to invalid UTF-8 and deep
nesting, and reports only one error. This module replaces it with a serialization plugin, which decodes the
body for each handler that declares `data: SomeRequest`.
"""

import asyncio
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, cast

import msgspec
from litestar import Request as Connection
from litestar.dto import AbstractDTO, DTOConfig, DTOFieldDefinition
from litestar.exceptions import InternalServerException
from litestar.plugins import SerializationPlugin
from litestar.typing import FieldDefinition
from msgspec import Raw

from broker.access.ownership import FRESH_SECONDS
from broker.errors import (
    BadRequest,
    MalformedJson,
    UnsupportedEncoding,
    UnsupportedMediaType,
    ValidationFailed,
)
from broker.http import json_limits
from broker.http.body_errors import MOST_PARTS, explain, field_at, readable_message, to_field_error
from broker.http.decoders import decoder, read, with_counter, without_duplicates
from broker.schemas.problems import FieldError
from broker.schemas.values import Request
from broker.settings import Settings

# An error lists at most this many invalid fields.
_MOST_ERRORS = 1_000
# A body up to this size is decoded on the event loop, a larger one in a thread.
_AT_ONCE = 64 * 1024
# Decoding a larger body may take seconds. It has its own thread, because smaller bodies must not wait for it.
_HUGE = 2**20
# One thread each. With more threads, the event loop would wait longer for the interpreter lock.
_thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")
_thread_for_huge = ThreadPoolExecutor(1, thread_name_prefix="huge bodies")


class JsonRequest(Connection[Any, Any, Any]):
    """A request whose missing body counts as an empty object, so that fields get their defaults."""

    # The decoded body if it is large. `body` decodes it in a thread.
    decoded: Request | None = None

    async def body(self) -> bytes:
        """Return the body. If it arrived slowly, check the client's access again.

        Raises:
            BadRequest: The client disconnected before it sent the whole body.
        """
        began = time.monotonic()
        try:
            body = await super().body() or b"{}"
        except InternalServerException as error:
            raise BadRequest(error.detail) from None
        if len(body) > _AT_ONCE and self.decoded is None:
            _check_media_type(self)
            kind = self.route_handler.parsed_fn_signature.parameters["data"].annotation
            self.decoded = await decode_async(body, kind, self.app.state.service.settings)
        if time.monotonic() - began > FRESH_SECONDS:
            await self.route_handler.authorize_connection(self)
        return body


class JsonBodies(SerializationPlugin):
    """The plugin that makes Litestar decode request structs with this module."""

    def supports_type(self, field_definition: FieldDefinition) -> bool:
        """Return whether the type is a request struct."""
        return field_definition.is_subclass_of(Request)

    def create_dto_for_type(self, field_definition: FieldDefinition) -> type[AbstractDTO[Any]]:
        """Return the class that decodes it."""
        return type(
            "JsonBody", (_JsonBody,), {"model_type": field_definition.annotation, "config": DTOConfig()}
        )


class _JsonBody(AbstractDTO[Any]):
    def decode_bytes(self, value: bytes) -> Any:
        request = cast("JsonRequest", self.asgi_connection)
        if request.decoded is not None:
            return request.decoded
        _check_media_type(request)
        return decode(value, self.model_type, request.app.state.service.settings)

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Do nothing, because Litestar's own backends are not used."""

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        return False


def _check_media_type(request: Connection[Any, Any, Any]) -> None:
    """Refuse a body that is compressed or not JSON."""
    media_type, _ = request.content_type
    if media_type not in ("", "application/json") and not media_type.endswith("+json"):
        raise UnsupportedMediaType
    encodings = request.headers.get("content-encoding", "identity").split(",")
    if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings):
        raise UnsupportedEncoding


async def decode_async(body: bytes, kind: type[Request], limits: Settings) -> Request:
    """Decode a body like `decode`, without blocking the event loop or smaller bodies."""
    if len(body) <= _AT_ONCE:
        return decode(body, kind, limits)
    thread = _thread if len(body) <= _HUGE else _thread_for_huge
    return await asyncio.get_running_loop().run_in_executor(thread, decode, body, kind, limits)


def decode(body: bytes, kind: type[Request], limits: Settings) -> Request:
    """Decode a body and check it.

    Raises:
        MalformedJson: The body is not JSON, or not UTF-8.
        ValidationFailed: A field is invalid; the error lists every invalid field.
    """
    if len(body) > _AT_ONCE:
        kind = with_counter(kind)
    try:
        request = _decoded(body, kind)
    except RecursionError:
        message = f"is nested deeper than {limits.max_depth}"
        raise ValidationFailed(
            [FieldError(field=field_at(body, depth=limits.max_depth), message=message)]
        ) from None
    if not json_limits.is_certainly_valid(request, body, limits) and (
        problems := list(islice(json_limits.find_problems(request, limits), _MOST_ERRORS))
    ):
        raise ValidationFailed(problems)
    return _decoded(_without_line_breaks(body), kind) if b"\n" in body or b"\r" in body else request


def _without_line_breaks(body: bytes) -> bytes:
    """Return JSON without line breaks. JSON has them only between its tokens.

    The broker returns values unchanged, and an export has one record per line. The function works in steps.
    """
    steps = range(0, len(body), json_limits.STEP_BYTES)
    return b"".join([body[at : at + json_limits.STEP_BYTES].translate(None, b"\r\n") for at in steps])


def _decoded(body: bytes, kind: type[Request]) -> Request:
    # The decoder does not check raw values.
    _check_utf8(body)
    deduplicated = body
    try:
        if len(body) > _AT_ONCE:
            deduplicated = without_duplicates(body, kind)
        request: Request = read(deduplicated, kind)
    except msgspec.ValidationError as error:
        _check_well_formed(body)
        is_short = len(body) <= _AT_ONCE or deduplicated is not body or body.count(b":") <= MOST_PARTS
        explained = list(islice(explain(deduplicated, kind), _MOST_ERRORS)) if is_short else []
        raise ValidationFailed(explained or [to_field_error(error)]) from None
    except msgspec.DecodeError as error:
        if lone := json_limits.lone_surrogate(body):
            field = FieldError(field=field_at(body, offset=lone), message=json_limits.LONE_SURROGATE)
            raise ValidationFailed([field]) from None
        raise _malformed_json(error) from None
    return request


def _check_utf8(body: bytes) -> None:
    """Refuse a body that is not UTF-8. The check runs in steps."""
    if body.isascii():
        return
    start = 0
    while start < len(body):
        end = most = start + json_limits.STEP_BYTES
        # A step does not end inside a character.
        while end < min(len(body), most + 3) and body[end] & 0xC0 == 0x80:
            end += 1
        try:
            str(body[start:end], "utf-8")
        except UnicodeDecodeError as error:
            place = start + error.start
            raise MalformedJson(
                f"The body is not valid UTF-8 at byte {place}. Send it encoded as UTF-8."
            ) from None
        start = end


def _check_well_formed(body: bytes) -> None:
    """Refuse a body that is not JSON after its first wrong type, where the decoder stops."""
    try:
        decoder(Raw).decode(body)
    except msgspec.DecodeError as error:
        raise _malformed_json(error) from None


def _malformed_json(error: msgspec.DecodeError) -> MalformedJson:
    return MalformedJson(f"The body is not valid JSON: {readable_message(error)}.")
