"""The connection to a broker: calls that are sent again when that is safe, and errors that speak."""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import UNSET, UnsetType

from broker.client import tracing
from broker.schemas import FieldError, Problem

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DEFAULT_URL = "http://127.0.0.1:8000"

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0
# How much longer than the broker's own waiting an answer may take.
_MARGIN_SECONDS = 30.0
# How much longer than patience lasts an answer may take that is on its way.
_LAST_ANSWER_SECONDS = 2.0
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}
# What makes something new with every call, unless that has an id of its client's.
_MAKES_NEW = ("/v1/tasks", "/v1/tools", "/reports")
# That nothing of the call has reached the broker.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class SettingError(ValueError):
    """The URL or the key of the broker cannot be one."""


class ProblemError(Exception):
    """The broker refused a call.

    Args:
        problem: What it said; `problem.code` is the word for programs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")

    def __reduce__(self) -> tuple[type[Self], tuple[Problem]]:
        """Pickled, for it goes from process to process."""
        return type(self), (self.problem,)

    @property
    def code(self) -> str:
        """The stable word for what went wrong, like `task_not_found`."""
        return self.problem.code

    @property
    def errors(self) -> list[FieldError]:
        """The fields that were refused."""
        return self.problem.errors or []


_ADVICE = {
    "unauthenticated": "Set BROKER_KEY to a key of this broker; `broker keys create` makes one there.",
    "forbidden": "The key in BROKER_KEY is good for something else; where the broker runs, `broker keys list`"
    " tells what.",
}


def explained(error: ProblemError) -> str:
    """What was refused, each field that was, and what to do, for people."""
    fields = [f"{field.field}: {field.message}" for field in error.errors]
    told = [error.problem.detail, *(field for field in fields if field not in error.problem.detail)]
    if advice := _ADVICE.get(error.code):
        told.append(advice)
    return "\n  ".join(told)


class Connection:
    """A connection to a broker.

    Calls are repeated with growing, random delays until the broker answers, or patience ends, however long it
    is away. One whose answer was lost is repeated only where that is safe: what would be made anew each time
    needs an id of its own for that.

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
        self.url = (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise SettingError(f"The broker's URL has to begin with http:// or https://, and is {self.url!r}")
        self._patience_seconds = patience_seconds
        self._away = False
        self._http = _client(self.url)
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
        trace: Mapping[str, str] | None = None,
        heard: Callable[[Mapping[str, str]], object] | None = None,
    ) -> Answer:
        """Make a call.

        Args:
            method: GET, POST and so on.
            path: Below the base path, like `/v1/tasks`.
            form: What the answer is.
            json: The body; anything msgspec can encode.
            query: Parameters; those that are None are left out.
            wait: How long the broker may wait before it answers.
            patience_seconds: How long to go on when it does not; else the connection's.
            trace: The headers of the trace that the call belongs to; else those of the current span, if any.
            heard: Is given the headers of the answer.

        Returns:
            The answer.

        Raises:
            ProblemError: The broker refused the call.
            httpx.TransportError: The broker did not answer for as long as patience lasts.
        """
        content = None if json is None else msgspec.json.encode(json)
        request = self._http.build_request(
            method,
            path,
            params=_parameters(query),
            content=content,
            headers={"Content-Type": "application/json", **(tracing.current() if trace is None else trace)},
            timeout=httpx.Timeout(wait + _MARGIN_SECONDS, connect=5),
        )
        patience = self._patience_seconds if patience_seconds is UNSET else patience_seconds
        answer, headers = await self._send(request, form, patience, repeatable(method, path, content))
        if heard is not None:
            heard(headers)
        return answer

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, Any] | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an answer of any length as it comes. It is asked for once: what was read cannot be unread.

        Args:
            path: Below the base path, like `/v1/archive/export`.
            query: Parameters; those that are None are left out.

        Raises:
            ProblemError: The broker refused the call.
            httpx.TransportError: The broker does not answer, or has stopped in the middle.
        """
        async with self._http.stream("GET", path, params=_parameters(query)) as response:
            if not response.is_success:
                await response.aread()
                raise ProblemError(_problem(response))
            yield response.aiter_bytes()

    async def _send(
        self, request: httpx.Request, form: type[Answer], patience: float | None, safe: bool
    ) -> tuple[Answer, httpx.Headers]:
        loop = asyncio.get_running_loop()
        end = None if patience is None else loop.time() + patience
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(None if end is None else end + _LAST_ANSWER_SECONDS):
                    response = await self._http.send(request)
                if response.is_success and (found := _read(response, form)) is not UNSET:
                    self._is_there()
                    return found, response.headers
                again = safe or response.status_code == HTTPStatus.TOO_MANY_REQUESTS
                is_refusal = not response.is_success and response.status_code not in _TRY_AGAIN
                if is_refusal or not again or (end is not None and loop.time() >= end):
                    self._is_there()
                    raise ProblemError(_problem(response))
                trouble, at_least = f"answers {response.status_code}", _retry_after(response)
            except TimeoutError:
                raise httpx.ReadTimeout("no answer came in time", request=request) from None
            except httpx.TransportError as error:
                again = safe or isinstance(error, _NOT_SENT)
                if not again or (end is not None and loop.time() >= end):
                    raise
                trouble, at_least = f"cannot be reached: {error!r}", 0.0
            self._is_away(trouble)
            # Full jitter, so that many who lost the same broker do not come back together.
            pause = at_least + delay * random.random()  # noqa: S311
            await asyncio.sleep(pause if end is None else min(pause, max(0.0, end - loop.time())))
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    def _is_away(self, trouble: str) -> None:
        if not self._away:
            log.warning("the broker at %s %s; going on trying", self.url, trouble)
            self._away = True

    def _is_there(self) -> None:
        if self._away:
            log.warning("the broker at %s is back", self.url)
            self._away = False

    async def close(self) -> None:
        """Close it."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _client(url: str) -> httpx.AsyncClient:
    """The HTTP client.

    Raises:
        SettingError: The URL is none, or what the environment says of proxies and certificates is no use.
    """
    try:
        # A proxy does not reach what is on this machine only.
        is_here = httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")
        return httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(_MARGIN_SECONDS, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not is_here,
        )
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        raise SettingError(f"The broker at {url!r} cannot be called: {error}") from error


class _Named(msgspec.Struct):
    """Of a body: its id, or those of its items."""

    id: str | None = None
    items: list["_Named"] = []


def repeatable(method: str, path: str, body: bytes | None) -> bool:
    """Whether a call can be made again though it may have been heard, and its answer lost.

    Args:
        method: Its method; all but some POST can.
        path: Its path.
        body: Its body, as JSON; what is to be made anew, or each of its items, needs an id.
    """
    collection = path.removesuffix("/batch")
    if method != "POST" or not collection.endswith(_MAKES_NEW):
        return True
    try:
        named = msgspec.json.decode(body or b"{}", type=_Named)
    except msgspec.ValidationError:
        return False
    return all(item.id is not None for item in ([named] if collection == path else named.items))


def in_path(id_: object) -> str:
    """An id as a part of a path."""
    return quote(str(id_), safe="~:")


def _parameters(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


def _retry_after(response: httpx.Response) -> float:
    """How long the broker asks to wait; something between us and it may say so in other words."""
    try:
        return min(max(0.0, float(response.headers.get("Retry-After", 0))), _LONGEST_RETRY_AFTER_SECONDS)
    except ValueError:
        return 0.0


def _read(response: httpx.Response, form: type[Answer]) -> Answer | UnsetType:
    """The answer; UNSET where something between us and the broker gave it."""
    try:
        return msgspec.json.decode(response.content or b"null", type=form)
    except msgspec.MsgspecError:
        return UNSET


def _problem(response: httpx.Response) -> Problem:
    try:
        return msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        # Something between us and the broker answered.
        return Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:200],
            instance=response.url.path,
            code="internal",
        )
