"""Errors of requests that the broker does not accept."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from broker.errors.base import BrokerError
from broker.schemas.problems import ErrorCode, FieldError


class BadRequest(BrokerError):
    """The broker cannot read the request.

    The request has a value that the broker cannot accept: a field, a query parameter, or a value that
    PostgreSQL cannot store. Correct the request before you send it again. `detail` says what is wrong, and
    `errors` lists the invalid fields.
    """

    status = 400
    code: ClassVar[ErrorCode] = "validation_failed"
    title = "Bad request"


class MalformedJson(BadRequest):
    """The body is not valid JSON. Correct it, and send it as UTF-8.

    The request body is not JSON, or it is not encoded in UTF-8. `detail` names the position of the error.
    Send the body as JSON in UTF-8, without a byte order mark.
    """

    code = "malformed_json"
    title = "Malformed JSON"


class MalformedRequest(BadRequest):
    """The request is not valid HTTP/1.1 (RFC 9112). Check the client, and every proxy before the broker.

    The broker cannot parse the request line, the headers or the length of the body, and closes the
    connection. Usually a proxy or a client library has a defect, or the client uses TLS (https) on a port
    that serves plain HTTP.
    """

    code = "malformed_request"


class ExpectationFailed(MalformedRequest):
    """The header `Expect` has another value than `100-continue`. Remove the header.

    If the status is 417, remove the header `Expect`, or send `Expect: 100-continue`.
    """

    status = 417
    title = "Expectation failed"


class ValidationFailed(BadRequest):
    """Some fields of the request are invalid.

    A field or a query parameter has a wrong type, is out of its range, is missing, or is unknown. `errors`
    lists every invalid field with the reason. In a batch, a field is named like `items[13].needs`, counted
    from 0. The broker has changed nothing. Correct these fields and send the request again.
    """

    title = "Validation failed"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(errors=errors)


class Unauthenticated(BrokerError):
    """The key is unknown. It is misspelled, incomplete or revoked. Check the key, or use another one.

    The request has no key, or the key or token in `Authorization: Bearer KEY` is not valid. Check that the
    client sends the whole key. If the key was revoked or lost, ask an admin for another one. The admin runs
    `broker keys create`. If a tool's token is invalid, register the tool again.
    """

    status = 401
    code = "unauthenticated"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": 'Bearer realm="broker"'}


class VoidToken(Unauthenticated):
    """This token is invalid: its tool was registered again or deleted, or its key was revoked.

    Usually a second program has registered a tool with the same id. Only the token of the last registration
    is valid. Give each program its own tool id, or stop the other program. Then register the tool again to
    get another token.
    """


class Forbidden(BrokerError):
    """This key may not make this request. Use a key with the required role.

    The key is valid, but it lacks the required role, or the task, tool or work belongs to another key.
    `detail` says which. Use a key with the right role, or the key that submitted the task or registered the
    tool. While the broker has no keys, it also refuses every request from outside its own machine.
    """

    status = 403
    code = "forbidden"


class MethodNotAllowed(BrokerError):
    """This path does not support this method. The page `/docs` lists the methods of each path.

    The path exists, but not with this HTTP method. Send an `OPTIONS` request: the header `Allow` of the
    response lists the methods of the path.
    """

    status = 405
    code = "method_not_allowed"


class RequestTimeout(BrokerError):
    """The request did not arrive in time. Check the network, and send the request again.

    The client took too long to send the headers or the body of the request. The limits are the settings
    `BROKER_HEADER_TIMEOUT_SECONDS` and `BROKER_BODY_TIMEOUT_SECONDS`. The broker has not carried out the
    request.
    """

    status = 408
    code = "request_timeout"


class PayloadTooLarge(BrokerError):
    """The body is larger than this service accepts. Split a batch, or send a reference to large data.

    The body is larger than `BROKER_MAX_BODY_BYTES`, or the work has too many reports. Send smaller batches,
    or store large data elsewhere and send a reference to it.
    """

    status = 413
    code = "payload_too_large"


class TooHeavy(PayloadTooLarge):
    """The database did not finish this request in time, although it ran alone.

    If the title is “Too heavy for the database”, the request has too many items or too large values for the
    database. Send fewer items in one request, or set `BROKER_DATABASE_TIMEOUT_SECONDS` higher. You can safely
    repeat the request in parts, even if the broker has carried out some of its items.
    """

    title = "Too heavy for the database"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The database did not finish this request within {seconds:g} s, although it ran alone."
            " Send fewer items in one request, or set BROKER_DATABASE_TIMEOUT_SECONDS higher."
        )


class UnsupportedMediaType(BrokerError):
    """The body must be JSON. Send `Content-Type: application/json` (curl: --json).

    The header `Content-Type` names another media type. Web forms and files are not accepted.
    """

    status = 415
    code = "unsupported_media_type"


class UnsupportedEncoding(UnsupportedMediaType):
    """The body must not be compressed. Remove the header `Content-Encoding`."""

    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class TooManyRequests(BrokerError):
    """This client has too many waiting requests. Repeat this one when some have ended.

    A key and its tools share one limit for long polls and event streams, the setting
    `BROKER_MAX_WAITS_PER_CLIENT`. While there are no keys, each address has this limit. Wait for the time in
    the header `Retry-After`, then repeat the request. If you need more waiting requests, raise the limit.
    """

    status = 429
    code = "too_many_requests"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class HeadersTooLarge(BrokerError):
    """The request line and the headers together are larger than 64 KiB. Shorten them.

    Usually a filter in the query is too long, or a proxy adds large headers.
    """

    status = 431
    code = "headers_too_large"
