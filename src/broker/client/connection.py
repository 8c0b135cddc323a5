"""The connection to a broker: calls that are sent again when that is safe, and errors that speak."""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from msgspec import UNSET, UnsetType

from broker.client import tracing
from broker.client.addresses import parsed, url_of_broker
from broker.client.encoding import encoded
from broker.client.errors import ProblemError, SettingError
from broker.client.judge import Judge
from broker.client.repeating import is_unheard, repeatable, retry_after, trouble_of
from broker.client.responses import is_of_type
from broker.schemas.problems import Problem

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# How much longer than the broker's own waiting an answer may take.
_MARGIN_SECONDS = 30.0
# How much longer than patience lasts an answer may take that is on its way.
_LAST_ANSWER_SECONDS = 2.0
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}
_HEADERS = ({"Content-Type": "application/json"}, {"Prefer": "return=minimal"})


class Connection:
    """A connection to a broker.

    Calls are repeated with growing, random delays until the broker answers, or patience ends, however long it
    is away. One whose answer was lost is repeated only where that is safe: what would be made anew each time
    needs an id of its own for that. A response that is not the broker's, such as a proxy's page, counts as a
    lost one, unless it says that the body is too large (413). Redirects that keep the method and the body
    (307, 308) are followed.

    Args:
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        patience_seconds: How long to go on when the broker does not answer; None: for ever.

    Raises:
        SettingError: The URL or the key cannot be one.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, patience_seconds: float | None = None
    ) -> None:
        self.url = url_of_broker(url)
        if not self.url.startswith(("http://", "https://")):
            raise SettingError(f"The broker's URL has to begin with http:// or https://, and is {self.url!r}")
        self._patience_seconds = patience_seconds
        self._trouble: str | None = None
        self._http = http_client(self.url, httpx.AsyncClient)
        #: Judges the responses of the broker at this URL, whichever HTTP client receives them.
        self.judge = Judge(self.url)
        self.use(key or os.environ.get("BROKER_KEY"))

    def use(self, key: str | None) -> None:
        """Use this key, or a tool's token, from now on.

        Raises:
            SettingError: No key is like that; it is not shown.
        """
        key = (key or "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise SettingError(
                "BROKER_KEY has characters that no key has: is it cut out of something longer?"
            )
        if key:
            self._http.headers["Authorization"] = f"Bearer {key}"

    @property
    def is_away(self) -> bool:
        """Whether the last request did not reach the broker."""
        return self._trouble is not None

    async def call(
        self,
        method: str,
        path: str,
        form: type[Answer],
        *,
        json: object = None,
        query: Mapping[str, Any] | None = None,
        wait: float = 0,
        patience_seconds: float | UnsetType | None = UNSET,
        is_minimal: bool = False,
        trace: Mapping[str, str] | None = None,
        heard: Callable[[Mapping[str, str]], object] | None = None,
    ) -> Answer:
        """Make a call.

        Args:
            method: GET, POST and so on.
            path: Below the base path, like `/v1/tasks`.
            form: What the answer is.
            json: The body; see `encoded` for what it may hold.
            query: Parameters; those that are None are left out.
            wait: How long the broker may wait before it answers.
            patience_seconds: How long to go on when it does not; else the connection's.
            is_minimal: Whether the shortest form of the answer will do.
            trace: The headers of the trace that the call belongs to; else those of the current span, if any.
            heard: Is given the headers of the answer.

        Returns:
            The answer.

        Raises:
            ProblemError: The broker refused the call.
            ProxyLimitError: A proxy refused it because its body is too large.
            SettingError: The broker has another URL; the message names it.
            httpx.TransportError: The broker did not answer for as long as patience lasts.
        """
        content = None if json is None else encoded(json)
        request = self._http.build_request(
            method,
            path,
            params=_parameters(query),
            content=content,
            headers={**_HEADERS[is_minimal], **(tracing.current() if trace is None else trace)},
            timeout=httpx.Timeout(wait + _MARGIN_SECONDS, connect=5),
        )
        patience = self._patience_seconds if patience_seconds is UNSET else patience_seconds
        answer, headers = await self._send(request, form, patience, repeatable(method, path, content))
        if heard is not None:
            heard(headers)
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, media_type: str, *, query: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an answer of any length as it comes. It is asked for once: what was read cannot be unread.

        Args:
            path: Below the base path, like `/v1/archive/export`.
            media_type: What the answer is of, like `application/x-ndjson`.
            query: Parameters; those that are None are left out.

        Raises:
            ProblemError: The broker refused the call.
            SettingError: The broker has another URL; the message names it.
            httpx.TransportError: The broker does not answer, or has stopped in the middle.
        """
        request = self._http.build_request("GET", path, params=_parameters(query))
        response = await self._exchange(request, stream=True)
        try:
            if not response.is_success or not is_of_type(response, media_type):
                await response.aread()
                raise ProblemError(self.judge.problem(request, response))
            with _broken_content_is_a_lost_response(request):
                yield response.aiter_bytes()
        finally:
            await response.aclose()

    async def _send(
        self, request: httpx.Request, form: type[Answer], patience: float | None, safe: bool
    ) -> tuple[Answer, httpx.Headers]:
        loop = asyncio.get_running_loop()
        end = None if patience is None else loop.time() + patience
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(None if end is None else end + _LAST_ANSWER_SECONDS):
                    response = await self._exchange(request)
                found = self.judge.read(request, response, form)
                if not isinstance(found, Problem):
                    self._note_return()
                    return found, response.headers
                is_safe = safe or found.status == HTTPStatus.TOO_MANY_REQUESTS
                again = found.status in _TRY_AGAIN and is_safe
                if not again or (end is not None and loop.time() >= end):
                    self._note_return()
                    raise ProblemError(found)
                trouble, at_least = f"answers {found.status}", retry_after(response)
            except TimeoutError:
                raise httpx.ReadTimeout("no answer came in time", request=request) from None
            except httpx.TransportError as error:
                if not (safe or is_unheard(error)) or (end is not None and loop.time() >= end):
                    raise
                trouble, at_least = trouble_of(error)
            self._note_trouble(trouble)
            # Full jitter, so that many who lost the same broker do not come back together.
            pause = at_least + delay * random.random()  # noqa: S311
            await asyncio.sleep(pause if end is None else min(pause, max(0.0, end - loop.time())))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def _exchange(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send a request, and follow the redirects that the judge allows."""
        response, redirects = await self._sent(request, stream=stream), 0
        while (following := self.judge.next_request(request, response, redirects)) is not None:
            response, redirects = await self._sent(following, stream=stream), redirects + 1
        return response

    async def _sent(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        with _broken_content_is_a_lost_response(request):
            response = await self._http.send(request, stream=stream)
            if response.next_request is not None:
                await response.aread()
        return response

    def _note_trouble(self, trouble: str) -> None:
        kind = trouble.partition(":")[0] if trouble.startswith("cannot be reached") else trouble
        if self._trouble != kind:
            log.warning("the broker at %s %s; going on trying", self.url, trouble)
            self._trouble = kind

    def _note_return(self) -> None:
        if self._trouble is not None:
            log.warning("the broker at %s is back", self.url)
            self._trouble = None

    async def close(self) -> None:
        """Close it."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def http_client(url: str, kind: type[Client]) -> Client:
    """Return an HTTP client for the broker.

    Args:
        url: Where the broker is.
        kind: `httpx.AsyncClient`, or `httpx.Client`.

    Raises:
        SettingError: The URL is none, or what the environment says of proxies and certificates is no use.
    """
    try:
        # A proxy does not reach what is on this machine only.
        is_here = parsed(url).host in ("localhost", "127.0.0.1", "::1")
        return kind(
            base_url=url,
            timeout=httpx.Timeout(_MARGIN_SECONDS, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not is_here,
        )
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise SettingError(f"The broker at {url!r} cannot be called: {error}") from error


@contextlib.contextmanager
def _broken_content_is_a_lost_response(request: httpx.Request) -> Iterator[None]:
    """Raise a transport error where the content of a response does not match its `Content-Encoding`."""
    try:
        yield
    except httpx.DecodingError as error:
        raise httpx.RemoteProtocolError(str(error), request=request) from error


def _parameters(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}
