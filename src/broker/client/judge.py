"""Judge the responses that a client gets: redirects, refusals, and what does not come from the broker."""

from http import HTTPStatus
from typing import TypeVar

import httpx

from broker.client import responses
from broker.client.addresses import has_port
from broker.client.errors import ProxyLimitError, SettingError
from broker.client.responses import ForeignResponseError
from broker.schemas.problems import Problem

Answer = TypeVar("Answer")

# These keep the method and the body.
_FOLLOWED = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)
_MOST_REDIRECTS = 5


class Judge:
    """The rules by which a client judges responses. They are the same for each of its requests.

    Any thread may use it.

    Args:
        url: The URL of the broker, as the client has it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._base_path = httpx.URL(url).path.rstrip("/")
        self._was_there = False

    def next_request(
        self, request: httpx.Request, response: httpx.Response, redirects: int
    ) -> httpx.Request | None:
        """Return the request that a redirect asks for, without the key if it goes to another origin.

        Args:
            request: The request as the client first sent it.
            response: The latest response to it.
            redirects: How many redirects the client has followed so far.

        Returns:
            The request to send next; None if the response is not a redirect.

        Raises:
            SettingError: The client cannot follow the redirect, and the broker never responded at this URL.
            ForeignResponseError: The client cannot follow it, but the broker responded at this URL before.
        """
        following = response.next_request
        if following is None:
            return None
        is_followed = response.status_code in _FOLLOWED and redirects < _MOST_REDIRECTS
        if is_followed and following.url.scheme in ("http", "https") and has_port(following.url):
            return following
        if self._was_there:
            # Something has come between; the broker may be back.
            raise ForeignResponseError(response)
        raise self._moved(request, following.url)

    def read(self, request: httpx.Request, response: httpx.Response, form: type[Answer]) -> Answer | Problem:
        """Return the broker's response, or the problem with which it refused the request.

        Args:
            request: The request as the client first sent it.
            response: The response after all redirects, with its content.
            form: The type of a success.

        Raises:
            SettingError: The broker refused the request because a redirect has removed the key.
            ProxyLimitError: A proxy refused the request because its body is too large.
            ForeignResponseError: The response is not the broker's.
        """
        try:
            found = responses.read(response, form)
        except ForeignResponseError:
            self._check_size(request, response)
            raise
        if isinstance(found, Problem):
            self._check_key(request, response, found)
        self._was_there = True
        return found

    def problem(self, request: httpx.Request, response: httpx.Response) -> Problem:
        """Return the problem with which the broker refused a request; see `read`."""
        found = responses.problem(response)
        self._check_key(request, response, found)
        return found

    def _check_size(self, request: httpx.Request, response: httpx.Response) -> None:
        """Raise an error for a proxy's limit, which does not pass as its other troubles do."""
        size = len(request.content)
        if size and response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            url = httpx.URL(self._url).copy_with(userinfo=b"")
            raise ProxyLimitError.of(str(url), request.url.path, size) from None

    def _check_key(self, request: httpx.Request, response: httpx.Response, found: Problem) -> None:
        had, has = (each.headers.get("Authorization") for each in (request, response.request))
        if found.status == HTTPStatus.UNAUTHORIZED and had and not has:
            raise self._moved(request, response.request.url)

    def _moved(self, request: httpx.Request, location: httpx.URL) -> SettingError:
        below = request.url.path.removeprefix(self._base_path)
        path = location.path.removesuffix(below)
        address = str(location.copy_with(path=path, query=None, fragment=None)).rstrip("/")
        if address == self._url:
            return SettingError(
                f"The server at {self._url} redirects to itself: set --url or BROKER_URL to the broker."
            )
        return SettingError(
            f"The broker at {self._url} has another address, {address}: set --url or BROKER_URL to it."
        )
