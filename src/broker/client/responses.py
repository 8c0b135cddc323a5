"""Distinguish the broker's own responses from those of something on the way to it, such as a proxy."""

from http import HTTPStatus
from typing import TypeVar

import httpx
import msgspec

from broker.schemas.problems import ERROR_CODES, Problem
from broker.texts import replace_unprintable, shorten

Result = TypeVar("Result")

_PROBLEM = "application/problem+json"
# With these statuses the broker may send an empty body.
_EMPTY = (HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT)
_MOST_CHARS = 80


class ForeignResponseError(httpx.TransportError):
    """The response does not come from a broker: a proxy, a gateway or another server gave it.

    Args:
        response: The response.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        super().__init__(f"something else responds: {_summary(response)}")


def read(response: httpx.Response, type_: type[Result]) -> Result | Problem:
    """Return the broker's response, or the problem with which it refused the request.

    Args:
        response: The response, with its content.
        type_: The type of a success.

    Raises:
        ForeignResponseError: The response is not the broker's.
    """
    if response.is_success and (response.content or response.status_code in _EMPTY):
        try:
            return msgspec.json.decode(response.content or b"null", type=type_)
        except msgspec.MsgspecError:
            raise ForeignResponseError(response) from None
    return problem(response)


def problem(response: httpx.Response) -> Problem:
    """Return the problem with which the broker refused a request.

    Raises:
        ForeignResponseError: The response is not a problem of the broker.
    """
    if not response.is_success and is_of_type(response, _PROBLEM):
        try:
            problem_ = msgspec.json.decode(response.content, type=Problem)
        except msgspec.MsgspecError:
            raise ForeignResponseError(response) from None
        if problem_.code in ERROR_CODES:
            return problem_
    raise ForeignResponseError(response)


def is_of_type(response: httpx.Response, media_type: str) -> bool:
    """Return whether the content of a response is of a media type."""
    content_type: str = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower() == media_type


def _summary(response: httpx.Response) -> str:
    """Describe a response on one line: its status, its type, where it points to, its first words."""
    facts = [f"{response.status_code} {response.reason_phrase}".rstrip()]
    if location := response.headers.get("Location"):
        facts.append(f"to {_words(location)}")
    if media_type := response.headers.get("Content-Type"):
        facts.append(_words(media_type))
    if first := _words(response.text):
        facts.append(repr(first))
    return ", ".join(facts)


def _words(text: str) -> str:
    """Return the beginning of a text on one line."""
    return replace_unprintable(shorten(" ".join(text[: 10 * _MOST_CHARS].split()), _MOST_CHARS), "?")
