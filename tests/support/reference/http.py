"""Generate the reference page about the HTTP API, from the OpenAPI document."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support import description
from tests.support.description import resolve
from tests.support.reference import layout
from tests.support.reference.layout import code, table

Document = dict[str, Any]


def page() -> str:
    """Return the reference page about the HTTP API, as Markdown."""
    document = description.make()
    return layout.page(
        "HTTP API",
        "The running service shows the same information at `/docs`, where you can send requests, and as an"
        " OpenAPI document at `/openapi.json`.",
        "## Conventions",
        # Without the sentence that says what the broker is.
        document["info"]["description"].partition("\n\n")[2].strip(),
        *_operations(document),
        "## Objects",
        "These are the JSON objects in requests and responses. A field with a default may be omitted.",
        *_objects(document),
    )


def _operations(document: Document) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"## {tag['name']}"
        yield tag["description"]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if operation["tags"][0] == tag["name"]:
                    yield from _operation(document, path, method.upper(), operation)


def _operation(document: Document, path: str, method: str, operation: Document) -> Iterator[str]:
    yield f"### {method} {path}"
    yield operation["summary"]
    yield operation.get("description", "")
    parameters = [resolve(document, parameter) for parameter in operation.get("parameters", [])]
    yield table(
        ["parameter", "in", "value", "meaning"],
        [
            (
                code(parameter["name"]),
                parameter["in"],
                _kind(parameter["schema"]) + _default(parameter["schema"]),
                _meaning(parameter),
            )
            for parameter in parameters
        ],
    )
    body = operation.get("requestBody")
    if body:
        [media] = body["content"].values()
        optional = "" if body.get("required") else " It may be omitted."
        kind = _kind(media["schema"])
        if kind == "[Nothing](#nothing)":
            yield "The request needs no body."
        else:
            yield f"The request body is {_article(kind)}.{optional}"
    yield table(
        ["status", "response"],
        [
            (status, _response(resolve(document, response)))
            for status, response in sorted(operation["responses"].items())
        ],
    )


def _response(response: Document) -> str:
    media_type, media = next(iter(response.get("content", {}).items()), ("", {}))
    if media_type == "application/problem+json":
        return " or ".join(f"[{code(name)}](errors.md#{name})" for name in media["examples"])
    if not media:
        return response["description"]
    kind = _kind(media["schema"]) if media_type == "application/json" else code(media_type)
    return f"{kind}: {response['description']}"


def _objects(document: Document) -> Iterator[str]:
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "properties" not in schema:
            continue
        yield f"### {name}"
        yield schema.get("description", "")
        required = schema.get("required", [])
        yield table(
            ["field", "value", "meaning"],
            [
                (
                    code(field),
                    _kind(kind) + ("" if field in required else _default(kind)),
                    _meaning(kind),
                )
                for field, kind in schema["properties"].items()
            ],
        )


def _kind(schema: Document) -> str:
    """Return the type of a value and its range, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind is None:
        return "any JSON value"
    if kind == "array":
        return f"array of {_kind(schema['items'])}{_range(schema, 'Items', ' items')}"
    if kind in ("integer", "number"):
        return kind + _number_range(schema)
    return {"date-time": "time", "uuid": "UUID"}.get(schema.get("format", ""), str(kind))


def _number_range(schema: Document) -> str:
    if "exclusiveMinimum" in schema and "maximum" in schema:
        return f" above {schema['exclusiveMinimum']}, up to {schema['maximum']}"
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']:g} to {_plain(schema['maximum'])}"
    return f" from {schema['minimum']}" if "minimum" in schema else ""


def _range(schema: Document, suffix: str, unit: str) -> str:
    least, most = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if most is None:
        return ""
    return f", {least or 0} to {most:,}{unit}"


def _default(schema: Document) -> str:
    if "default" not in schema:
        return ""
    value = schema["default"]
    return f" (default {code(value if isinstance(value, str) else json.dumps(_plain(value)))})"


def _plain(value: Any) -> Any:
    """Return a number without a fraction as an integer, and any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _meaning(item: Document) -> str:
    texts = [item.get("description", ""), item.get("schema", {}).get("description", "")]
    texts += [each.get("description", "") for each in item.get("anyOf", [])]
    # The descriptions of a field and of its type may share a beginning.
    different = dict.fromkeys(text for text in texts if text)
    return " ".join(
        text for text in different if not any(text in other for other in different.keys() - {text})
    )


def _article(kind: str) -> str:
    return f"an {kind}" if kind.strip("[`")[0].lower() in "aeiou" else f"a {kind}"
