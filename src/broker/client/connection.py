"""The connection to a broker: calls that are sent again when that is safe, and errors that speak."""

import asyncio
import os
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from broker.schemas import FieldError, Problem

Answer = TypeVar("Answer")

DEFAULT_URL = "http://127.0.0.1:8000"

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# How much longer than the broker's own waiting an answer may take.
_MARGIN_SECONDS = 30.0
_TRY_AGAIN = {429, 502, 503, 504}


class ProblemError(Exception):
    """The broker refused a call.

    Args:
        problem: What it said; `problem.code` is the word for programs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")

    @property
    def code(self) -> str:
        """The stable word for what went wrong, like `task_not_found`."""
        return self.problem.code

    @property
    def errors(self) -> list[FieldError]:
        """The fields that were refused."""
        return self.problem.errors or []


class Connection:
    """A connection to a broker.

    Every call of the API can be sent again safely, so a lost answer is no reason to give up: calls are
    repeated with growing, random delays until the broker answers, or patience ends.

    Args:
        url: Where the broker is; else `BROKER_URL`, else the local one.
        key: The key; else `BROKER_KEY`, else none.
        patience_seconds: How long to go on when the broker does not answer; None: for ever.
    """

    def __init__(
        self, url: str | None = None, *, key: str | None = None, patience_seconds: float | None = None
    ) -> None:
        self.url = (url or os.environ.get("BROKER_URL") or DEFAULT_URL).rstrip("/")
        self._patience_seconds = patience_seconds
        self._http = httpx.AsyncClient(
            base_url=self.url,
            timeout=httpx.Timeout(_MARGIN_SECONDS, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self.use(key or os.environ.get("BROKER_KEY"))

    def use(self, key: str | None) -> None:
        """Use this key, or a tool's token, from now on."""
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
    ) -> Answer:
        """Make a call.

        Args:
            method: GET, POST and so on.
            path: Below the base path, like `/v1/tasks`.
            form: What the answer is.
            json: The body; anything msgspec can encode.
            query: Parameters; those that are None are left out.
            wait: How long the broker may wait before it answers.

        Returns:
            The answer.

        Raises:
            ProblemError: The broker refused the call.
            httpx.TransportError: The broker did not answer for as long as patience lasts.
        """
        parameters = {name: value for name, value in (query or {}).items() if value is not None}
        request = self._http.build_request(
            method,
            path,
            params=parameters,
            content=None if json is None else msgspec.json.encode(json),
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(wait + _MARGIN_SECONDS, connect=5),
        )
        response = await self._send(request)
        if response.is_success:
            return msgspec.json.decode(response.content or b"null", type=form)
        raise ProblemError(_problem(response))

    async def _send(self, request: httpx.Request) -> httpx.Response:
        loop = asyncio.get_running_loop()
        end = None if self._patience_seconds is None else loop.time() + self._patience_seconds
        delay = _FIRST_DELAY_SECONDS
        while True:
            try:
                response = await self._http.send(request)
                if response.status_code not in _TRY_AGAIN or (end is not None and loop.time() > end):
                    return response
                at_least = float(response.headers.get("Retry-After") or 0)
            except httpx.TransportError:
                if end is not None and loop.time() > end:
                    raise
                at_least = 0.0
            # Full jitter, so that many who lost the same broker do not come back together.
            await asyncio.sleep(at_least + delay * random.random())  # noqa: S311
            delay = min(2 * delay, _LONGEST_DELAY_SECONDS)

    async def close(self) -> None:
        """Close it."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def in_path(id_: object) -> str:
    """An id as a part of a path."""
    return quote(str(id_), safe="~:")


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
