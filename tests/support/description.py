"""Look up operations, schemas and error codes in the OpenAPI description."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from litestar import Litestar

from broker.app import create_app, create_service
from broker.http.openapi import describe
from broker.settings import Settings

Json = dict[str, Any]

PROBLEM = "application/problem+json"


class Operation(NamedTuple):
    """An operation of the API: a method, a path and its description."""

    method: str
    path: str
    described: Json

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def responses(self, document: Json) -> Json:
        """Return the described responses by status."""
        return {
            status: resolve(document, response) for status, response in self.described["responses"].items()
        }


def make_app() -> Litestar:
    """Return the application, which does not run and has no database."""
    return create_app(create_service(Settings(database_url="postgresql://nobody@127.0.0.1/nothing")))


def make() -> Json:
    """Return the OpenAPI description, without a running broker."""
    return describe(make_app())


def operations(document: Json) -> list[Operation]:
    return [
        Operation(method.upper(), path, described)
        for path, item in document["paths"].items()
        for method, described in item.items()
    ]


def resolve(document: Json, value: Json) -> Json:
    """Follow the references of an object, and return the object that they lead to."""
    while "$ref" in value:
        reference, value = value["$ref"], document
        for step in reference.removeprefix("#/").split("/"):
            value = value[step]
    return value


def nested_objects(value: Any) -> Iterator[Json]:
    """Yield every JSON object in a value, including the value itself."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nested_objects(each)


def error_codes(method: str, path: str) -> set[tuple[int, str]] | None:
    """Return the described errors of a request as (status, code), or None if there is no such operation."""
    for operation_method, pattern, errors in _errors():
        if operation_method == method and pattern.fullmatch(path):
            return errors
    return None


@cache
def _errors() -> list[tuple[str, "re.Pattern[str]", set[tuple[int, str]]]]:
    document = make()
    rows = []
    # A literal path such as /v1/tasks/batch precedes /v1/tasks/{task_id}, which also matches it.
    for operation in sorted(operations(document), key=lambda operation: operation.path.count("{")):
        errors = {
            (int(status), code)
            for status, response in operation.responses(document).items()
            for code in response.get("content", {}).get(PROBLEM, {}).get("examples", ())
        }
        path = re.compile(re.sub(r"\{\w+\}", "[^/]+", operation.path))
        rows.append((operation.method, path, errors))
    return rows
