"""A connection to a broker: retry requests while that is safe, and raise errors that explain themselves."""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Self, TypeVar

import httpx
import msgspec
from msgspec import UNSET, UnsetType

from broker.client import tracing
from broker.client.addresses import url_of_broker
from broker.client.encoding import encoded
from broker.client.errors import ProblemError, SettingError
from broker.client.http_client import MARGIN_SECONDS, clients
from broker.client.request import BrokerRequest
from broker.client.response_reader import ResponseReader, is_of_type
from broker.client.retrying import describe_error, is_repeatable, retry_after, was_not_received
from broker.client.server_connection import Reply
from broker.schemas.problems import Problem

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_Headers = httpx.Headers | Sequence[tuple[bytes, bytes]]

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# When its patience ends, the client still waits this long for the response to a request that it has sent.
_LAST_RESPONSE_SECONDS = 2.0
_RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
_HEADERS = ({"Content-Type": "application/json"}, {"Prefer": "return=minimal"})


class Connection:
    """An asynchronous HTTP connection to a broker, for requests that the other classes do not offer.

    While the broker does not respond, the client retries a request. The delays between attempts grow, with a
    random part. If a response was lost, the client repeats the request only if that is safe. A request that
    creates something is safe to repeat if its body has an `id`.

    If something other than the broker responds, for example a proxy with an error page, the client treats
    the response as lost. The exception is a proxy that refuses a body as too large (413). The client follows
    redirects that keep the method and the body (307, 308).

    Use the connection with `async with`, or call `close` at the end.

    Example:
        async with Connection() as connection:
            stats = await connection.call("GET", "/v1/stats", dict)

    Args:
        url: The URL of the broker. Default: `BROKER_URL`, or else `http://127.0.0.1:8000`.
        key: The key. Default: `BROKER_KEY`, or else no key.
        patience_seconds: How long, in seconds, the client retries a request while the broker does not
            respond. Default: None, which means forever.

    Attributes:
        url: The URL of the broker, without a slash at its end.
        response_reader: Checks and decodes the responses of this broker. For internal use.

    Raises:
        SettingError: The URL or the key is not valid.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, patience_seconds: float | None = None
    ) -> None:
        self.url = url_of_broker(url)
        if not self.url.startswith(("http://", "https://")):
            raise SettingError(
                f"The URL of the broker is {self.url!r}. It must begin with http:// or https://."
            )
        self._patience_seconds = patience_seconds
        self._trouble: str | None = None
        self._http, self._transport = clients(self.url)
        self._base_path = self._http.base_url.raw_path.decode().rstrip("/")
        self.response_reader = ResponseReader(self.url)
        self.use(key or os.environ.get("BROKER_KEY"))

    def use(self, key: str | None) -> None:
        """Send another key with all later requests.

        Args:
            key: The key, or the token of a tool. If it is None or empty, nothing changes.

        Raises:
            SettingError: The key contains characters that a key cannot have, such as spaces. The message does
                not show the key.
        """
        key = (key or "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise SettingError(
                "The key in BROKER_KEY contains a space or another character that a key cannot have."
                " Copy only the key itself."
            )
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"
        headers = [(b"Host", self._http.base_url.netloc), *self._http.headers.raw]
        self._common_headers = b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"

    @property
    def is_away(self) -> bool:
        """True while the broker does not respond and the client retries."""
        return self._trouble is not None

    async def call(
        self,
        method: str,
        path: str,
        type_: type[Result],
        *,
        json: object = None,
        query: Mapping[str, Any] | None = None,
        wait: float = 0,
        patience_seconds: float | UnsetType | None = UNSET,
        is_minimal: bool = False,
        trace: Mapping[str, str] | None = None,
        on_headers: Callable[[Mapping[str, str]], object] | None = None,
    ) -> Result:
        """Send a request and return the decoded response.

        Args:
            method: The HTTP method, like `GET`.
            path: The path after the URL of the broker, like `/v1/tasks`.
            type_: The type of the response: `dict`, `NoneType` for an empty response, or any other type that
                msgspec can decode.
            json: The body: JSON values, or Python values that the client can convert, such as dataclasses,
                paths and numpy arrays. Default: no body.
            query: The query parameters. The client omits parameters that are None.
            wait: How long the broker may hold the request, in seconds. Use the same value as in the query.
                Default: 0.
            patience_seconds: How long, in seconds, to retry while the broker does not respond; None means
                forever. Default: the value of the connection.
            is_minimal: If True, the client asks for the shortest form of the response
                (`Prefer: return=minimal`).
            trace: The HTTP headers of the OpenTelemetry trace. Default: those of the current span, if any.
            on_headers: A function that the client calls with the headers of the response.

        Returns:
            The response, as a value of `type_`.

        Raises:
            ProblemError: The broker refused the request, or a proxy refused its body as too large.
            SettingError: The URL redirects to another one, which the message names.
            TypeError: A value in `json` has no JSON form.
            httpx.TransportError: The broker did not respond within `patience_seconds`.
        """
        content = None if json is None else encoded(json)
        own_headers = {**_HEADERS[is_minimal], **(tracing.current() if trace is None else trace)}
        request = BrokerRequest(method, path, query, content, own_headers, wait + MARGIN_SECONDS)
        patience = self._patience_seconds if patience_seconds is UNSET else patience_seconds
        result, headers = await self._send(request, type_, patience, is_repeatable(method, path, content))
        if on_headers is not None:
            # Without an encoding, httpx would look for one that fits all headers.
            on_headers(httpx.Headers(headers, encoding="latin-1"))
        return result

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, media_type: str, *, query: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read a response of any length as it arrives.

        The client sends this GET request only once, without retries.

        Args:
            path: The path after the URL of the broker, like `/v1/archive/export`.
            media_type: The media type of the response, like `application/x-ndjson`.
            query: The query parameters. The client omits parameters that are None.

        Yields:
            An asynchronous iterator over the bytes of the response. Use this method with `async with`.

        Raises:
            ProblemError: The broker refused the request.
            SettingError: The URL redirects to another one, which the message names.
            httpx.TransportError: The broker did not respond, or the connection was lost.
        """
        request = BrokerRequest("GET", path, query, None, {}, MARGIN_SECONDS).for_httpx(self._http)
        response = await self._exchange(request, stream=True)
        try:
            if not response.is_success or not is_of_type(response, media_type):
                await response.aread()
                raise ProblemError(self.response_reader.problem(request, response))
            with _broken_content_is_a_lost_response(request):
                yield response.aiter_bytes()
        finally:
            await response.aclose()

    async def _send(
        self, request: BrokerRequest, type_: type[Result], patience: float | None, is_safe: bool
    ) -> tuple[Result, _Headers]:
        """Send a request, retry it if that is safe, and return the decoded response and its headers."""
        loop = asyncio.get_running_loop()
        end = None if patience is None else loop.time() + patience
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                if end is None:
                    result, headers = await self._attempt(request, type_, is_safe)
                else:
                    async with asyncio.timeout_at(end + _LAST_RESPONSE_SECONDS):
                        result, headers = await self._attempt(request, type_, is_safe)
                if not isinstance(result, Problem):
                    self._note_return()
                    return result, headers
                is_retried = result.status in _RETRIED_STATUSES and (
                    is_safe or result.status == HTTPStatus.TOO_MANY_REQUESTS
                )
                if not is_retried or (end is not None and loop.time() >= end):
                    self._note_return()
                    raise ProblemError(result)
                trouble, at_least = f"returned status {result.status}", retry_after(headers)
            except TimeoutError:
                raise httpx.ReadTimeout(
                    "the broker did not respond in time", request=request.for_httpx(self._http)
                ) from None
            except httpx.TransportError as error:
                is_retried = is_safe or was_not_received(error)
                if not is_retried or (end is not None and loop.time() >= end):
                    error.request = request.for_httpx(self._http)
                    raise
                trouble, at_least = describe_error(error)
            self._note_trouble(trouble)
            # The jitter keeps clients that lost the same broker from returning all at once.
            pause = at_least + delay * random.random()  # noqa: S311
            await asyncio.sleep(pause if end is None else min(pause, max(0.0, end - loop.time())))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def _attempt(
        self, request: BrokerRequest, type_: type[Result], is_safe: bool
    ) -> tuple[Result | Problem, _Headers]:
        """Send a request once, and return the decoded response and its headers."""
        reply = await self._send_directly(request, is_safe)
        if reply is not None and reply.content and 200 <= reply.status < 300:
            # Only httpx decodes compressed content, and only the reader recognizes other servers.
            with contextlib.suppress(msgspec.MsgspecError):
                return self.response_reader.decoded(reply.content, type_), reply.headers
        sent = request.for_httpx(self._http)
        with _broken_content_is_a_lost_response(sent):
            response = None if reply is None else reply.for_httpx(sent)
        if response is None or response.has_redirect_location:
            # A redirect comes from another server, so the broker has not received the request.
            response = await self._exchange(sent)
        return self.response_reader.read(sent, response, type_), response.headers

    async def _send_directly(self, request: BrokerRequest, is_safe: bool) -> Reply | None:
        """Send a request without httpx, and return the response. Return None if the request needs httpx."""
        if self._transport is None or (head := request.head(self._base_path, self._common_headers)) is None:
            return None
        content = request.content or b""
        return await self._transport.send(head, content, request.silent_seconds, is_repeatable=is_safe)

    async def _exchange(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send a request and follow the redirects that the response reader allows."""
        response, redirects = await self._send_once(request, stream=stream), 0
        while (following := self.response_reader.next_request(request, response, redirects)) is not None:
            response, redirects = await self._send_once(following, stream=stream), redirects + 1
        return response

    async def _send_once(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        with _broken_content_is_a_lost_response(request):
            response = await self._http.send(request, stream=stream)
            if response.next_request is not None:
                await response.aread()
        return response

    def _note_trouble(self, trouble: str) -> None:
        kind = trouble.partition(":")[0] if trouble.startswith("could not be reached") else trouble
        if self._trouble != kind:
            log.warning("the broker at %s %s; retrying", self.url, trouble)
            self._trouble = kind

    def _note_return(self) -> None:
        if self._trouble is not None:
            log.warning("the broker at %s responded again", self.url)
            self._trouble = None

    async def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            await self._transport.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@contextlib.contextmanager
def _broken_content_is_a_lost_response(request: httpx.Request) -> Iterator[None]:
    """Raise a transport error if the content of a response does not match its `Content-Encoding`."""
    try:
        yield
    except httpx.DecodingError as error:
        raise httpx.RemoteProtocolError(str(error), request=request) from error
