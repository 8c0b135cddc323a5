"""/docs and /openapi.json: the API's page, all of it served from here, so that it needs no internet."""

from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from litestar import Controller, Litestar, MediaType, Request, Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Schema
from litestar.params import FromPath
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition
from msgspec import Raw

from broker.api import problems
from broker.api.access import anyone
from broker.schemas import Problem

_MEDIA_TYPES = {"css": "text/css", "js": "text/javascript"}
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")


_TASK = {"id": "job-1", "needs": {"can": "count"}, "payload": "three small words", "priority": 5}
_PAIR = {"task_id": "job-1", "tool_id": "counter"}
_WORK_ID = "019f2f6c-5d3c-7a10-8c62-9a2c5e6f7a81"

EXAMPLES: dict[str, Any] = {
    "NewTool": {"id": "counter", "skills": {"can": ["count"]}, "capacity": 2},
    "ToolChange": {"draining": True},
    "Nothing": {},
    "NewTask": _TASK,
    "NewTasks": {"items": [_TASK, {"needs": {"can": "count"}}]},
    "NewRemark": {"text": "no tool can count"},
    "TaskRemarks": {"items": [{"task_id": "job-1", "text": "no tool can count"}]},
    "Pair": _PAIR,
    "Pairs": {"items": [_PAIR]},
    "NewCancellation": {"requeue": True},
    "NewReport": {"progress": 0.5, "message": "half way", "data": {"seen": 2}},
    "Completion": {"outcome": "succeeded", "result": {"words": 3}, "next_wait_seconds": 30},
    "WorkCompletions": {"items": [{"work_id": _WORK_ID, "outcome": "succeeded", "result": {"words": 3}}]},
}


class Docs(Controller):
    """The description of the API for programs, and what the page for people loads."""

    include_in_schema = False

    @get("/openapi.json", guards=[anyone])
    async def openapi(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """The description as OpenAPI 3.1."""
        return Response(_described(request.app), media_type="application/json")

    @get("/docs/assets/{name:str}", guards=[anyone])
    async def asset(self, name: FromPath[str]) -> Response[bytes]:
        """A part of the page."""
        if name not in _ASSETS:
            raise NotFoundException
        return Response(_asset(name), media_type=_MEDIA_TYPES[name.rpartition(".")[2]])


class Page(OpenAPIRenderPlugin):
    """The page for people; Litestar's own load from elsewhere."""

    def __init__(self) -> None:
        super().__init__(path="/", media_type=MediaType.HTML)

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The page; it reads the description by itself."""
        return _asset("index.html")


class JsonValues(OpenAPISchemaPlugin):
    """What the broker passes through is any JSON value."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        """Whether this is such a value."""
        return value is Raw

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """A schema that everything fits."""
        return Schema(description="Any JSON value; it comes back equal.")


def config(version: str) -> OpenAPIConfig:
    """What Litestar has to know to describe the API."""
    return OpenAPIConfig(
        title="broker",
        version=version,
        description="Brings work together with the programs that can do it.",
        use_handler_docstrings=True,
        operation_id_creator=_operation_id,
        openapi_router=Router("/docs", route_handlers=[], guards=[anyone], include_in_schema=False),
        render_plugins=[Page()],
    )


def _operation_id(handler: HTTPRouteHandler, _method: Any, _path: Any) -> str:
    """Like `tools_register`: what generated clients call it."""
    return f"{handler.fn.__qualname__.partition('.')[0].lower()}_{handler.handler_name}"


@cache
def _described(app: Litestar) -> bytes:
    description = app.openapi_schema.to_schema()
    [problem], components = msgspec.json.schema_components(
        [Problem], ref_template="#/components/schemas/{name}"
    )
    description["components"]["schemas"].update(components)
    # Litestar describes its own shape of errors; ours is one and the same everywhere.
    answer = {
        "description": "A problem, as RFC 9457 has it; `code` is the word for programs.",
        "content": {problems.MEDIA_TYPE: {"schema": problem}},
    }
    for path in description["paths"].values():
        for operation in path.values():
            operation["summary"], _, rest = operation["description"].partition("\n")
            operation["description"] = rest.strip()
            _complete(operation, description["components"]["schemas"])
            operation["responses"].pop("400", None)
            operation["responses"]["default"] = answer
    return msgspec.json.encode(description)


def _complete(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Say of a request's body whether it may be left out, and show one."""
    if (body := operation.get("requestBody")) is None:
        return
    [content] = body["content"].values()
    name = content["schema"]["$ref"].rpartition("/")[2]
    body["required"] = bool(schemas[name].get("required"))
    content["example"] = EXAMPLES[name]


@cache
def _asset(name: str) -> bytes:
    return (files("broker") / "web" / "docs" / name).read_bytes()
