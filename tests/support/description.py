"""The description of the API, as tests look things up in it."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from broker.app import create_app, create_service
from broker.http.openapi import describe
from broker.settings import Settings

Json = dict[str, Any]

PROBLEM = "application/problem+json"


class Operation(NamedTuple):
    """A call that is described."""

    method: str
    path: str
    described: Json

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def responses(self, document: Json) -> Json:
        """What it may answer, by status."""
        return {status: resolve(document, there) for status, there in self.described["responses"].items()}


def make() -> Json:
    """The description; no broker has to run for that."""
    service = create_service(Settings(database_url="postgresql://nobody@127.0.0.1/nothing"))
    return describe(create_app(service))


def operations(document: Json) -> list[Operation]:
    return [
        Operation(method.upper(), path, described)
        for path, item in document["paths"].items()
        for method, described in item.items()
    ]


def resolve(document: Json, there: Json) -> Json:
    """What stands there, or where it refers to."""
    while "$ref" in there:
        reference, there = there["$ref"], document
        for step in reference.removeprefix("#/").split("/"):
            there = there[step]
    return there


def nested_objects(value: Any) -> Iterator[Json]:
    """Every object in it."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_objects(each)


def error_codes(method: str, path: str) -> set[tuple[int, str]] | None:
    """The errors that a request may be answered with: statuses and codes; None: no such call is described."""
    for called, pattern, found in _codes():
        if called == method and pattern.fullmatch(path):
            return found
    return None


@cache
def _codes() -> list[tuple[str, "re.Pattern[str]", set[tuple[int, str]]]]:
    document = make()
    found = []
    for call in sorted(operations(document), key=lambda call: call.path.count("{")):
        told = {
            (int(status), code)
            for status, answer in call.responses(document).items()
            for code in answer.get("content", {}).get(PROBLEM, {}).get("examples", ())
        }
        found.append((call.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", call.path)), told))
    return found
