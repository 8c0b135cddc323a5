"""Generate the OpenAPI 3.1 document from the handlers.

msgspec reads and writes the bodies, so its schemas describe them exactly. Litestar's document would be wrong
about nullable parameters, unknown fields, lower limits of 0, and the format of errors.
"""

import re
from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from inspect import cleandoc
from types import NoneType
from typing import Annotated, Any, cast, get_args
from uuid import UUID

import msgspec
from litestar import Litestar
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import ParameterKwarg, PathParameter
from litestar.typing import FieldDefinition
from msgspec import Meta, Struct

from broker.errors import BrokerError, ValidationFailed, WorkEnded
from broker.http import problems
from broker.http.guards import Reach
from broker.http.openapi_examples import EXAMPLES
from broker.http.openapi_links import links
from broker.http.openapi_operations import Operation, is_struct, operations, summary_of
from broker.schemas.keys import KeyName
from broker.schemas.problems import FieldError, Problem
from broker.schemas.tools import ToolStatus
from broker.schemas.values import Id

JsonObject = dict[str, Any]

_ABOUT = """\
The broker matches tasks with the programs that can do them. [Documentation](/help/)

**Errors.** Every error is a problem (RFC 9457) with a stable `code` for programs. Each operation lists the
errors that it may return. Every operation may also return 404 `not_found` for an unknown path, 405
`method_not_allowed` for an unsupported method, and 500 `internal` for a defect of the broker. An unknown
parameter or field is an error (400). A request that is not valid HTTP/1.1 gets 400 `malformed_request`. A
request that does not arrive in time gets 408 `request_timeout`. A request line and headers of more than 64
KiB get 431 `headers_too_large`.

**JSON values.** The broker returns JSON values that are equal to those it received, with all digits of their
numbers. In `payload`, `data` and `result`, it changes nothing but line breaks. The broker refuses only values
that PostgreSQL's jsonb cannot store: `\\u0000`, lone surrogates, and numbers out of range. Write an integer
as `3`, not `3.0`.

**Keys.** Each operation lists the roles that may use it. A key has one or more roles. Send it as
`Authorization: Bearer KEY`. While no keys exist, every operation is open to programs on the service's own
machine.
"""

_TAGS = {
    "Tools": "Programs, instruments and machines that do work.",
    "Tasks": "A task has needs for the assigner and a payload for the tool. It is live until it has succeeded"
    " or was cancelled, so a failed task is live. An ended task is in the archive.",
    "The assigner": "Read the available tasks and tools, and assign tasks to tools.",
    "Work": "One attempt of one tool at one task.",
    "Archive": "The records of all attempts that have ended, with their reports.",
    "Overview": "Summaries for dashboards, without payloads and results.",
    "Events": "A stream of changes, as they happen.",
    "Keys": "Keys and their roles.",
    "Health": "Health checks, statistics and metrics.",
}

# The type and description of each path parameter.
_IN_PATHS: dict[str, tuple[Any, str]] = {
    "task_id": (Id, "Id of the task."),
    "tool_id": (Id, "Id of the tool."),
    "work_id": (UUID, "Id of the work."),
    "key_name": (KeyName, "Name of the key."),
}

_RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer"}}
}
_HEADERS: dict[int, JsonObject] = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "required": True, "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

# W3C Trace Context. Without patterns, because the broker ignores invalid headers and does not refuse them.
_TRACE: dict[str, tuple[str, str]] = {
    "traceparent": (
        "The trace and span of the submission (W3C Trace Context). The broker ignores invalid values.",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
    "tracestate": ("Data of tracing systems. Ignored without a `traceparent`.", "lab=beam-4"),
}
_RETURNED_TRACE: JsonObject = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {
        "traceparent": "The trace and span in which the task was submitted, if any.",
        "tracestate": "The `tracestate` of the submission, if any.",
    }.items()
}

# `broker.client` has classes with the names of these structs, and users import those.
_NAMES: dict[type[Struct], str] = {ToolStatus: "Tool"}

# ECMAScript does not need this suffix, because its `$` matches only at the end.
_PYTHON_SUFFIX = r"(?!\n)"


def describe(app: Litestar) -> JsonObject:
    """Return the OpenAPI document of an application."""
    all_operations = operations(app)
    paths: JsonObject = {}
    for operation in all_operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, all_operations)
    return {
        "openapi": "3.1.0",
        "info": {"title": "broker", "version": version("broker"), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": _components(all_operations),
    }


def _operation(operation: Operation, all_operations: list[Operation]) -> JsonObject:
    # A summary is plain text, not Markdown.
    summary, description = operation.docstring
    if operation.events:
        description = f"{description}\n\n{_list_of_events(operation.events)}"
    if operation.roles:
        description = f"{description}\n\nRoles: {_list_of_roles(operation.roles)}.".strip()
    described: JsonObject = {
        "tags": operation.handler.resolve_tags(),
        "summary": summary.replace("`", ""),
        "operationId": operation.id,
    }
    if description:
        described["description"] = description
    if operation.roles:
        described["security"] = [{"key": []}]
    parameters = [_parameter(name, field) for name, field in operation.parameters.items()]
    if operation.accepts_trace:
        parameters += [_ref("parameters", name) for name in _TRACE]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        described["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(operation.body)),
            "content": {"application/json": _content(operation.body)},
        }
    described["responses"] = _responses(operation, all_operations)
    return described


def _list_of_roles(roles: Mapping[str, Reach]) -> str:
    """Return a list such as `submitter (its own), operator, admin`."""
    names = {"token": "a tool's token"}
    return ", ".join(
        names.get(role, f"`{role}`") + (" (its own)" if reach is Reach.OWN else "")
        for role, reach in roles.items()
    )


def _list_of_events(events: Mapping[str, type[Struct]]) -> str:
    """Return a Markdown list of the events and their data."""
    return "\n".join(
        f"- `{name}` (data: `{component_name(struct)}`). {summary_of(struct)}"
        for name, struct in events.items()
    )


# Requests


def _parameter(name: str, field: FieldDefinition) -> JsonObject:
    declared = cast("ParameterKwarg", field.kwarg_definition)
    if isinstance(declared, PathParameter):
        return _ref("parameters", name)
    described: JsonObject = {"name": name, "in": "query"}
    if declared.description:
        described["description"] = declared.description
    described["schema"] = _schema_of_parameter(field, declared)
    return described


def _schema_of_parameter(field: FieldDefinition, declared: ParameterKwarg) -> JsonObject:
    kind = field.annotation
    if field.is_optional:  # a query has no null
        [kind] = (each for each in get_args(kind) if each is not NoneType)
    limits = {name: getattr(declared, name) for name in ("gt", "ge", "lt", "le", "pattern")}
    meta = Meta(**{name: limit for name, limit in limits.items() if limit is not None})
    schema: JsonObject = _tidy(msgspec.json.schema(Annotated[kind, meta])) | (declared.schema_extra or {})
    if field.has_default and field.default is not None:
        schema["default"] = field.default
    return schema


def _path_parameter(name: str) -> JsonObject:
    kind, description = _IN_PATHS[name]
    schema = _tidy(msgspec.json.schema(kind))
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _trace_parameter(name: str) -> JsonObject:
    description, example = _TRACE[name]
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "example": example, "schema": schema}


# Responses


def _responses(operation: Operation, all_operations: list[Operation]) -> JsonObject:
    described = {
        str(status): _response(operation, response, all_operations)
        for status, response in operation.responses.items()
    }
    for status, errors in operation.errors.items():
        if str(status) in described:
            described[str(status)]["content"] |= _error_response(errors)["content"]
        else:
            described[str(status)] = _ref("responses", _name(errors))
    return described


def _response(operation: Operation, response: ResponseSpec, all_operations: list[Operation]) -> JsonObject:
    body: Any = response.data_container
    described: JsonObject = {"description": response.description}
    if is_struct(body):
        described["content"] = {"application/json": _content(body)}
    elif body not in (None, NoneType):
        media_type = operation.handler.media_type
        written = media_type.value if isinstance(media_type, Enum) else str(media_type)
        described["content"] = {written: {"schema": {"type": "string"}}}
        if operation.events:
            described["content"][written]["example"] = _stream(operation.events)
    if operation.returns_trace:
        described["headers"] = {name: _ref("headers", name) for name in _RETURNED_TRACE}
    if response_links := links(body, all_operations):
        described["links"] = response_links
    return described


def _stream(events: Mapping[str, type[Struct]]) -> str:
    """Return an example of the stream with every event, because no schema can describe such a text."""
    return "".join(
        f"id: 5f1c09ab-{number}\nevent: {name}\ndata: {msgspec.json.encode(EXAMPLES[struct]).decode()}\n\n"
        for number, (name, struct) in enumerate(events.items(), 1)
    )


def _error_response(errors: tuple[type[BrokerError], ...]) -> JsonObject:
    examples = {error.code: _ref("examples", error.code) for error in errors}
    described: JsonObject = {
        "description": " Or: ".join(f"{error.title}." for error in errors),
        "content": {problems.MEDIA_TYPE: {"schema": _ref("schemas", Problem.__name__), "examples": examples}},
    }
    if headers := _HEADERS.get(errors[0].status):
        described["headers"] = headers
    return described


def _name(errors: tuple[type[BrokerError], ...]) -> str:
    return "_or_".join(error.code for error in errors)


# Components


def _components(all_operations: list[Operation]) -> JsonObject:
    structs: set[Any] = {operation.body for operation in all_operations}
    for operation in all_operations:
        structs |= {response.data_container for response in operation.responses.values()}
    structs = set(filter(is_struct, structs))
    examples = {component_name(struct): EXAMPLES[struct] for struct in structs}
    structs |= {struct for operation in all_operations for struct in operation.events.values()}
    error_responses = {
        _name(errors): errors for operation in all_operations for errors in operation.errors.values()
    }
    examples |= {error.code: _problem(error) for errors in error_responses.values() for error in errors}
    _, schemas = msgspec.json.schema_components(
        [*structs, Problem], ref_template=_ref("schemas", "{name}")["$ref"]
    )
    return {
        "schemas": dict(sorted(_tidy(_renamed(schemas)).items())),
        "parameters": {
            **{name: _path_parameter(name) for name in _IN_PATHS},
            **{name: _trace_parameter(name) for name in _TRACE},
        },
        "headers": _RETURNED_TRACE,
        "responses": {name: _error_response(errors) for name, errors in sorted(error_responses.items())},
        "examples": {name: {"value": value} for name, value in sorted(examples.items())},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }


def component_name(struct: type[Struct]) -> str:
    """Return the name of a class in the document."""
    return _NAMES.get(struct, struct.__name__)


def _renamed(schemas: dict[str, Any]) -> Any:
    """Return the schemas under the names of the document. msgspec names them after their classes."""
    text = msgspec.json.encode(schemas).decode()
    for struct, name in _NAMES.items():
        # The name is a key, a title or the end of a reference.
        text = re.sub(rf'(?<=["/]){struct.__name__}(?=")', name, text)
    return msgspec.json.decode(text)


def _problem(error: type[BrokerError]) -> JsonObject:
    """Return an example of a problem."""
    if issubclass(error, ValidationFailed):
        raised: BrokerError = error([FieldError(field="needs", message="is missing")])
    elif issubclass(error, WorkEnded):
        raised = error("lost")
    else:
        raised = error()
    example: JsonObject = msgspec.to_builtins(problems.problem(raised, "/v1/tasks"))
    return example


def _content(struct: type[Struct]) -> JsonObject:
    name = component_name(struct)
    return {"schema": _ref("schemas", name), "examples": {name: _ref("examples", name)}}


def _ref(kind: str, name: str) -> JsonObject:
    return {"$ref": f"#/components/{kind}/{name}"}


def _tidy(schema: Any) -> Any:
    """Return a schema as other programs expect it: with types of enums, and with ECMAScript patterns."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {key: _tidy(value) for key, value in schema.items()}
    if isinstance(tidied.get("description"), str):
        # A docstring is indented, and Markdown would show indented paragraphs as code.
        tidied["description"] = cleandoc(tidied["description"])
    if isinstance(tidied.get("enum"), list):
        tidied["type"] = "string"
    if isinstance(tidied.get("pattern"), str):
        tidied["pattern"] = tidied["pattern"].replace(_PYTHON_SUFFIX, "")
    return tidied
