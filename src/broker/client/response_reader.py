"""Read responses, and recognize those that come from a proxy or another server instead of the broker."""

from http import HTTPStatus
from typing import TypeVar

import httpx
import msgspec

from broker.client.addresses import has_port
from broker.client.errors import ProxyLimitError, SettingError
from broker.schemas.problems import ERROR_CODES, Problem
from broker.texts import replace_unprintable, shorten

Result = TypeVar("Result")

_PROBLEM = "application/problem+json"
# With these statuses the broker may send an empty body.
_EMPTY = (HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT)
# These keep the method and the body.
_FOLLOWED_STATUSES = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)
_MOST_REDIRECTS = 5
_MOST_CHARS = 80


class ForeignResponseError(httpx.TransportError):
    """The response comes from a proxy, a gateway or another server, not from a broker."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        super().__init__(f"another server responded: {_summary(response)}")


class ResponseReader:
    """Reads all responses from the URL of a broker. Any thread may use it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._base_path = httpx.URL(url).path.rstrip("/")
        self._has_responded = False

    def next_request(
        self, request: httpx.Request, response: httpx.Response, redirects: int
    ) -> httpx.Request | None:
        """Return the request that a redirect asks for. If it goes to another origin, it has no key.

        Args:
            request: The request as the client first sent it.
            response: The latest response to it.
            redirects: The number of redirects that the client has followed so far.

        Returns:
            The request to send next, or None if the response is not a redirect.

        Raises:
            SettingError: The client cannot follow the redirect, and the broker never responded at this URL.
            ForeignResponseError: The client cannot follow the redirect, but the broker responded at this URL
                before.
        """
        following = response.next_request
        if following is None:
            return None
        is_followed = response.status_code in _FOLLOWED_STATUSES and redirects < _MOST_REDIRECTS
        if is_followed and following.url.scheme in ("http", "https") and has_port(following.url):
            return following
        if self._has_responded:
            # The broker is at this URL, so another server responded in its place only for a moment.
            raise ForeignResponseError(response)
        raise self._moved(request, following.url)

    def read(self, request: httpx.Request, response: httpx.Response, type_: type[Result]) -> Result | Problem:
        """Return the broker's response, or the problem with which it refused the request.

        Args:
            request: The request as the client first sent it.
            response: The response after all redirects, with its content.
            type_: The type of a successful response.

        Raises:
            SettingError: The broker refused the request because a redirect removed the key.
            ProxyLimitError: A proxy refused the request because its body is too large.
            ForeignResponseError: The response does not come from the broker.
        """
        if not response.is_success:
            return self.problem(request, response)
        if not response.content and response.status_code not in _EMPTY:
            raise ForeignResponseError(response)
        result = _decoded(response, type_)
        self._has_responded = True
        return result

    def decoded(self, content: bytes, type_: type[Result]) -> Result:
        """Return the broker's response from its content.

        Raises:
            msgspec.MsgspecError: The content is not of this type.
        """
        result = msgspec.json.decode(content, type=type_)
        self._has_responded = True
        return result

    def problem(self, request: httpx.Request, response: httpx.Response) -> Problem:
        """Return the problem with which the broker refused a request; see `read`."""
        try:
            problem = _problem(response)
        except ForeignResponseError:
            # The size limit of a proxy is permanent, unlike its other errors.
            size = len(request.content)
            if size and response.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                url = httpx.URL(self._url).copy_with(userinfo=b"")
                raise ProxyLimitError.of(str(url), request.url.path, size) from None
            raise
        first, last = (each.headers.get("Authorization") for each in (request, response.request))
        if problem.status == HTTPStatus.UNAUTHORIZED and first and not last:
            raise self._moved(request, response.request.url)
        self._has_responded = True
        return problem

    def _moved(self, request: httpx.Request, location: httpx.URL) -> SettingError:
        """Return an error that names the URL to which the broker has moved."""
        below = request.url.path.removeprefix(self._base_path)
        path = location.path.removesuffix(below)
        address = str(location.copy_with(path=path, query=None, fragment=None)).rstrip("/")
        if address == self._url:
            return SettingError(
                f"The server at {self._url} redirects to itself. Set --url or BROKER_URL to the broker's URL."
            )
        return SettingError(
            f"The server at {self._url} redirects to {address}. If the broker has moved there, set --url or"
            " BROKER_URL to that URL."
        )


def is_of_type(response: httpx.Response, media_type: str) -> bool:
    """Return whether the content of a response is of a media type."""
    content_type: str = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower() == media_type


def _problem(response: httpx.Response) -> Problem:
    if not response.is_success and is_of_type(response, _PROBLEM):
        problem = _decoded(response, Problem)
        if problem.code in ERROR_CODES:
            return problem
    raise ForeignResponseError(response)


def _decoded(response: httpx.Response, type_: type[Result]) -> Result:
    try:
        return msgspec.json.decode(response.content or b"null", type=type_)
    except msgspec.MsgspecError:
        raise ForeignResponseError(response) from None


def _summary(response: httpx.Response) -> str:
    """Describe a response on one line, by its status, location, type and first words."""
    facts = [f"{response.status_code} {response.reason_phrase}".rstrip()]
    if location := response.headers.get("Location"):
        facts.append(f"to {_words(location)}")
    if media_type := response.headers.get("Content-Type"):
        facts.append(_words(media_type))
    if first := _words(response.text):
        facts.append(repr(first))
    return ", ".join(facts)


def _words(text: str) -> str:
    """Return the beginning of a text as one line, without unprintable characters."""
    return replace_unprintable(shorten(" ".join(text[: 10 * _MOST_CHARS].split()), _MOST_CHARS), "?")
