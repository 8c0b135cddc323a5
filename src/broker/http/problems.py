"""Send errors as `application/problem+json` (RFC 9457)."""

from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE, HTTP_500_INTERNAL_SERVER_ERROR
from litestar.types import Receive, Scope, Send
from msgspec import UNSET

from broker.errors import (
    BadRequest,
    BrokerError,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    Unavailable,
    ValidationFailed,
    WorkEnded,
)
from broker.http.parameters import parameters
from broker.http.request_log import HEADER, new_request_id
from broker.schemas.problems import FieldError, Problem
from broker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"


def response(
    request: Request[Any, Any, Any], error: Exception, metrics: Metrics | None = None
) -> Response[bytes]:
    """Return the response with the problem of an error, and count the error in `metrics`."""
    known = error if isinstance(error, BrokerError) else _translate(request, error)
    if metrics is not None:
        metrics.refused(known.code)
    # `request.url` would parse the header `Host`, which may be invalid.
    path = request.scope["path"]
    headers = dict(known.headers) | (getattr(error, "headers", None) or {})
    if known.status >= 500 and not isinstance(known, Unavailable):
        if "request_id" not in structlog.contextvars.get_contextvars():
            # Operators find the error in the log by this id.
            headers[HEADER] = new_request_id()
            structlog.contextvars.bind_contextvars(request_id=headers[HEADER])
        log.error("request failed", method=request.method, path=path, exc_info=error)
    return Response(
        content=msgspec.json.encode(problem(known, path)),
        status_code=known.status,
        media_type=MEDIA_TYPE,
        headers=headers,
    )


def problem(error: BrokerError, instance: str) -> Problem:
    """Return the problem of an error.

    Args:
        error: The error.
        instance: The path of the request.
    """
    return Problem(
        # RFC 9457: the problem has no type of its own. Programs use its `code`.
        type="about:blank",
        title=error.title,
        status=error.status,
        detail=error.detail,
        instance=instance,
        code=error.code,
        errors=error.errors or UNSET,
        outcome=error.outcome if isinstance(error, WorkEnded) else UNSET,
    )


async def send(
    error: Exception, scope: Scope, receive: Receive, send: Send, metrics: Metrics | None = None
) -> None:
    """Send the response with the problem of an error, and count the error in `metrics`."""
    reply = response(Request(scope, receive, send), error, metrics)
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(reply.content))} | reply.headers
    await send(
        {
            "type": "http.response.start",
            "status": reply.status_code or HTTP_500_INTERNAL_SERVER_ERROR,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": reply.content, "more_body": False})


def last_response(error: BrokerError, path: str = "") -> bytes:
    """Return the bytes of a response that ends a connection. It needs no request."""
    content = msgspec.json.encode(problem(error, path))
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(content)), "Connection": "close"}
    headers["Date"] = formatdate(usegmt=True)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += (f"{name.lower()}: {value}" for name, value in {**headers, **error.headers}.items())
    return "\r\n".join([*lines, "", ""]).encode() + content


def _translate(request: Request[Any, Any, Any], error: Exception) -> BrokerError:
    """Return the broker's error for an error of Litestar. Any other error becomes one without details."""
    match error:
        case ValidationException():
            names = parameters(request.route_handler)
            return ValidationFailed([_field_error(names, each) for each in error.extra or []])
        case NotFoundException():
            return NotFound()
        case MethodNotAllowedException():
            return MethodNotAllowed()
        case HTTPException(status_code=status) if status == HTTP_413_REQUEST_ENTITY_TOO_LARGE:
            return PayloadTooLarge()
        case HTTPException(status_code=status) if 400 <= status < 500:
            return BadRequest(error.detail)
    return BrokerError()


def _field_error(names: Mapping[str, str], extra: Any) -> FieldError:
    key = extra.get("key", "query")
    message = extra.get("message", "is not valid")
    return FieldError(field=names.get(key, key), message=message[:1].lower() + message[1:])
