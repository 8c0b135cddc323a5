"""The OpenAPI 3.1 document, made from the handlers.

msgspec, which reads and writes the bodies, describes them to the letter. What Litestar would make of the same
handlers is not so: parameters that may be null, unknown fields that are welcome, a `ge=0` that is forgotten,
errors of a shape that is not ours.
"""

from collections.abc import Mapping
from enum import Enum
from importlib.metadata import version
from types import NoneType
from typing import Annotated, Any, cast, get_args
from uuid import UUID

import msgspec
from litestar import Litestar
from litestar.params import ParameterKwarg, PathParameter
from litestar.typing import FieldDefinition
from msgspec import Meta, Struct

from broker.errors import BrokerError, ValidationFailed, WorkEnded
from broker.http import problems
from broker.http.component_names import component_name, renamed
from broker.http.guards import Reach
from broker.http.openapi_examples import EXAMPLES
from broker.http.openapi_operations import DescribedResponse, Operation, in_a_sentence, is_struct, operations
from broker.schemas.archive import ArchiveRecord
from broker.schemas.candidates import Candidates, Pair
from broker.schemas.completion import Completed
from broker.schemas.keys import KeyName, MadeKey
from broker.schemas.problems import FieldError, Problem
from broker.schemas.tasks import Task
from broker.schemas.tools import RegisteredTool, ToolStatus
from broker.schemas.values import Id, Nothing
from broker.schemas.work import Work, WorkItems, WorkWithReports

Json = dict[str, Any]

_ABOUT = """\
Brings work together with the programs that can do it.

Every error is a problem (RFC 9457) with a stable word for programs, `code`; each call says which it may
answer with. An address that there is not is 404 `not_found`, a method that an address does not take is 405
`method_not_allowed`, and a failure of the broker's own would be 500 `internal`. A parameter or a field that a
call does not know is refused: 400. What is no HTTP/1.1 is 400 `malformed_request`, what does not come in time
408 `request_timeout`, and more than 64 KiB of address and headers 431 `headers_too_large`.

Any JSON value comes back equal, numbers to the last digit. Only what PostgreSQL's jsonb cannot hold is
refused: `\\u0000`, lone surrogates, numbers out of its range. `payload`, `data` and `result` come back as
they were sent, but for line breaks. An integer is written as one: `3`, not `3.0`.

Every call says which roles it is for: a key has one or more of them, and is sent as
`Authorization: Bearer KEY`. While there are no keys everything is open, to the service's own machine alone.
"""

_TAGS = {
    "Tools": "Programs, instruments and machines that do work.",
    "Tasks": "Things that need doing.",
    "The assigner": "What an assigner looks at, and how it says which tool does what.",
    "Work": "One attempt of one tool at one task.",
    "Archive": "How everything ended: every attempt, with all that was reported on it.",
    "Overview": "Summaries for whoever watches, without payloads and results.",
    "Events": "What happens, as it happens.",
    "Keys": "Who may do what.",
    "Health": "For load balancers, containers, Prometheus and people.",
}

# What stands in the path: of which type, and what it is.
_IN_PATHS: dict[str, tuple[Any, str]] = {
    "task_id": (Id, "The task's id."),
    "tool_id": (Id, "The tool's id."),
    "work_id": (UUID, "The work's id."),
    "key_name": (KeyName, "The key's name."),
}

_RETRY_AFTER = {
    "Retry-After": {"description": "In so many seconds.", "required": True, "schema": {"type": "integer"}}
}
_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"description": "`Bearer`.", "required": True, "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}

# W3C Trace Context. Patterns would say that what is garbled is refused.
_TRACE: dict[str, tuple[str, str]] = {
    "traceparent": (
        "The trace and span that the task is submitted in (W3C Trace Context). Garbled, it is ignored.",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ),
    "tracestate": ("What tracers want to know besides; without `traceparent` it is ignored.", "lab=beam-4"),
}
_TRACE_ANSWERED: Json = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {
        "traceparent": "The trace and the span that the task was submitted in, where it was in one.",
        "tracestate": "As the submitter gave it, where it did.",
    }.items()
}

# There, `$` is the end, and there is no newline after it to be refused.
_PYTHONS_OWN = r"(?!\n)"

# Where an answer holds what the parameters of other calls want.
_LEADS: dict[Any, dict[str, str]] = {
    ToolStatus: {"tool_id": "/id"},
    RegisteredTool: {"tool_id": "/id"},
    Task: {"task_id": "/id"},
    Work: {"work_id": "/id"},
    WorkItems: {"work_id": "/items/0/id"},
    WorkWithReports: {"work_id": "/id"},
    Completed: {"work_id": "/archived/work_id", "task_id": "/archived/task_id"},
    ArchiveRecord: {"work_id": "/work_id"},
    MadeKey: {"key_name": "/name"},
}
# And where it holds all that the body of another call wants.
_LEADS_TO_BODY: dict[Any, tuple[Any, dict[str, str]]] = {
    Candidates: (Pair, {"task_id": "/tasks/0/id", "tool_id": "/tools/0/id"}),
}


def describe(app: Litestar) -> Json:
    """The document; the same handlers make the same one.

    Args:
        app: The application with the handlers.
    """
    calls = operations(app)
    paths: Json = {}
    for call in calls:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call, calls)
    return {
        "openapi": "3.1.0",
        "info": {"title": "broker", "version": version("broker"), "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": _components(calls),
    }


def _operation(call: Operation, calls: list[Operation]) -> Json:
    summary, description = call.docstring
    if call.events:
        description = f"{description}\n\n{_what_is_told(call.events)}"
    if call.roles:
        description = f"{description}\n\nFor {_who(call.roles)}.".strip()
    # A summary is a text, and no Markdown.
    plainly = summary.replace("`", "")
    described: Json = {"tags": call.handler.resolve_tags(), "summary": plainly, "operationId": call.id}
    if description:
        described["description"] = description
    if call.roles:
        described["security"] = [{"key": []}]
    taken = [_parameter(name, field) for name, field in call.parameters.items()]
    if call.takes_trace:
        taken += [_ref("parameters", name) for name in _TRACE]
    if taken:
        described["parameters"] = taken
    if call.body:
        described["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(call.body)),
            "content": {"application/json": _content(call.body)},
        }
    described["responses"] = _responses(call, calls)
    return described


def _who(roles: Mapping[str, Reach]) -> str:
    """Like `submitter (its own), operator, admin`."""
    names = {"token": "a tool's token"}
    return ", ".join(
        names.get(role, f"`{role}`") + (" (its own)" if reach is Reach.OWN else "")
        for role, reach in roles.items()
    )


def _what_is_told(events: Mapping[str, type[Struct]]) -> str:
    """Each event, and what its data is; in a list, as Markdown."""
    return "\n".join(
        f"- `{name}`: a `{component_name(form)}`. {in_a_sentence(form)}" for name, form in events.items()
    )


# What is sent


def _parameter(name: str, field: FieldDefinition) -> Json:
    said = cast("ParameterKwarg", field.kwarg_definition)
    if isinstance(said, PathParameter):
        return _ref("parameters", name)
    described: Json = {"name": name, "in": "query"}
    if said.description:
        described["description"] = said.description
    described["schema"] = _schema_of_parameter(field, said)
    return described


def _schema_of_parameter(field: FieldDefinition, said: ParameterKwarg) -> Json:
    kind = field.annotation
    if field.is_optional:  # it may be left out; there is no null in a query
        [kind] = (each for each in get_args(kind) if each is not NoneType)
    limits = {name: getattr(said, name) for name in ("gt", "ge", "lt", "le", "pattern")}
    meta = Meta(**{name: limit for name, limit in limits.items() if limit is not None})
    schema: Json = _tidy(msgspec.json.schema(Annotated[kind, meta])) | (said.schema_extra or {})
    if field.has_default and field.default is not None:
        schema["default"] = field.default
    return schema


def _path_parameter(name: str) -> Json:
    kind, description = _IN_PATHS[name]
    schema = _tidy(msgspec.json.schema(kind))
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _trace_parameter(name: str) -> Json:
    description, example = _TRACE[name]
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": description, "example": example, "schema": schema}


# What is answered


def _responses(call: Operation, calls: list[Operation]) -> Json:
    described = {str(status): _response(call, answer, calls) for status, answer in call.answers.items()}
    for status, errors in call.refusals.items():
        if str(status) in described:
            described[str(status)]["content"] |= _refusal(errors)["content"]
        else:
            described[str(status)] = _ref("responses", _name(errors))
    return described


def _response(call: Operation, answer: DescribedResponse, calls: list[Operation]) -> Json:
    described: Json = {"description": answer.description}
    if is_struct(answer.form):
        described["content"] = {"application/json": _content(answer.form)}
    elif answer.form not in (None, NoneType):
        media_type = call.handler.media_type
        written = media_type.value if isinstance(media_type, Enum) else str(media_type)
        described["content"] = {written: {"schema": {"type": "string"}}}
        if call.events:
            described["content"][written]["example"] = _stream(call.events)
    if call.hands_on_trace:
        described["headers"] = {name: _ref("headers", name) for name in _TRACE_ANSWERED}
    if links := _links(answer.form, calls):
        described["links"] = links
    return described


def _stream(events: Mapping[str, type[Struct]]) -> str:
    """An example of each event, as it is sent; no schema can say what such a text is made of."""
    return "".join(
        f"id: 5f1c09ab-{number}\nevent: {name}\ndata: {msgspec.json.encode(EXAMPLES[form]).decode()}\n\n"
        for number, (name, form) in enumerate(events.items(), 1)
    )


def _links(form: Any, calls: list[Operation]) -> Json:
    """Where an answer leads: to every call that takes what it holds."""
    links: Json = {}
    held = _LEADS.get(form, {})
    wanted, held_for_body = _LEADS_TO_BODY.get(form, (Nothing, {}))
    for call in calls:
        if given := {name: held[name] for name in call.parameters if name in held}:
            links[call.id] = {"operationId": call.id, "parameters": _in_the_body(given)}
        if held_for_body and call.body is wanted:
            links[call.id] = {"operationId": call.id, "requestBody": _in_the_body(held_for_body)}
    return links


def _in_the_body(pointers: dict[str, str]) -> Json:
    return {name: f"$response.body#{pointer}" for name, pointer in pointers.items()}


def _refusal(errors: tuple[type[BrokerError], ...]) -> Json:
    examples = {error.code: _ref("examples", error.code) for error in errors}
    described: Json = {
        "description": "; or: ".join(error.title for error in errors),
        "content": {problems.MEDIA_TYPE: {"schema": _ref("schemas", Problem.__name__), "examples": examples}},
    }
    if headers := _HEADERS.get(errors[0].status):
        described["headers"] = headers
    return described


def _name(errors: tuple[type[BrokerError], ...]) -> str:
    return "_or_".join(error.code for error in errors)


# What is used in many places


def _components(calls: list[Operation]) -> Json:
    forms = {call.body for call in calls if call.body}
    forms |= {answer.form for call in calls for answer in call.answers.values() if is_struct(answer.form)}
    examples = {component_name(form): EXAMPLES[form] for form in forms}
    forms |= {form for call in calls for form in call.events.values()} | {Problem}
    refusals = {_name(errors): errors for call in calls for errors in call.refusals.values()}
    examples |= {error.code: _problem(error) for errors in refusals.values() for error in errors}
    _, schemas = msgspec.json.schema_components(forms, ref_template=_ref("schemas", "{name}")["$ref"])
    return {
        "schemas": dict(sorted(_tidy(renamed(schemas)).items())),
        "parameters": {
            **{name: _path_parameter(name) for name in _IN_PATHS},
            **{name: _trace_parameter(name) for name in _TRACE},
        },
        "headers": _TRACE_ANSWERED,
        "responses": {name: _refusal(errors) for name, errors in sorted(refusals.items())},
        "examples": {name: {"value": value} for name, value in sorted(examples.items())},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }


def _problem(error: type[BrokerError]) -> Json:
    """An example of a problem."""
    if issubclass(error, ValidationFailed):
        raised: BrokerError = error([FieldError(field="needs", message="is missing")])
    elif issubclass(error, WorkEnded):
        raised = error("lost")
    else:
        raised = error()
    example: Json = msgspec.to_builtins(problems.problem(raised, "/v1/tasks"))
    return example


def _content(form: type[Struct]) -> Json:
    name = component_name(form)
    return {"schema": _ref("schemas", name), "examples": {name: _ref("examples", name)}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _tidy(schema: Any) -> Any:
    """A schema as other programs expect it: texts are said to be texts, patterns are those of ECMAScript."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {key: _tidy(value) for key, value in schema.items()}
    if isinstance(tidied.get("enum"), list):
        tidied["type"] = "string"
    if isinstance(tidied.get("pattern"), str):
        tidied["pattern"] = tidied["pattern"].replace(_PYTHONS_OWN, "")
    return tidied
