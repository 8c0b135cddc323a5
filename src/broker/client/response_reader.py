"""Read the responses that a client gets: redirects, refusals, and what does not come from the broker."""

from http import HTTPStatus
from typing import TypeVar

import httpx

from broker.client import responses
from broker.client.addresses import has_port
from broker.client.errors import ProxyLimitError, SettingError
from broker.client.responses import ForeignResponseError
from broker.schemas.problems import Problem

Result = TypeVar("Result")

# These keep the method and the body.
_FOLLOWED_STATUSES = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)
_MOST_REDIRECTS = 5


class ResponseReader:
    """Reads the responses to all requests of a client.

    Any thread may use it.

    Args:
        url: The URL of the broker, as the client has it.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._base_path = httpx.URL(url).path.rstrip("/")
        self._has_responded = False

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
        is_followed = response.status_code in _FOLLOWED_STATUSES and redirects < _MOST_REDIRECTS
        if is_followed and following.url.scheme in ("http", "https") and has_port(following.url):
            return following
        if self._has_responded:
            # Something else has responded in its place for the moment.
            raise ForeignResponseError(response)
        raise self._moved(request, following.url)

    def read(self, request: httpx.Request, response: httpx.Response, type_: type[Result]) -> Result | Problem:
        """Return the broker's response, or the problem with which it refused the request.

        Args:
            request: The request as the client first sent it.
            response: The response after all redirects, with its content.
            type_: The type of a success.

        Raises:
            SettingError: The broker refused the request because a redirect has removed the key.
            ProxyLimitError: A proxy refused the request because its body is too large.
            ForeignResponseError: The response is not the broker's.
        """
        try:
            result = responses.read(response, type_)
        except ForeignResponseError:
            self._check_size(request, response)
            raise
        if isinstance(result, Problem):
            self._check_key(request, response, result)
        self._has_responded = True
        return result

    def problem(self, request: httpx.Request, response: httpx.Response) -> Problem:
        """Return the problem with which the broker refused a request; see `read`."""
        problem = responses.problem(response)
        self._check_key(request, response, problem)
        return problem

    def _check_size(self, request: httpx.Request, response: httpx.Response) -> None:
        """Raise an error for a proxy's size limit, which is permanent, unlike other errors of a proxy."""
        size = len(request.content)
        if size and response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            url = httpx.URL(self._url).copy_with(userinfo=b"")
            raise ProxyLimitError.of(str(url), request.url.path, size) from None

    def _check_key(self, request: httpx.Request, response: httpx.Response, problem: Problem) -> None:
        """Raise an error if the broker refused the request because a redirect has removed the key."""
        first, last = (each.headers.get("Authorization") for each in (request, response.request))
        if problem.status == HTTPStatus.UNAUTHORIZED and first and not last:
            raise self._moved(request, response.request.url)

    def _moved(self, request: httpx.Request, location: httpx.URL) -> SettingError:
        """Return an error that names the URL to which the broker has moved."""
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
