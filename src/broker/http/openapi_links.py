"""The links of the OpenAPI document: from a response to the operations that accept what it holds."""

from typing import Any

from broker.http.openapi_operations import Operation
from broker.schemas.archive import ArchiveRecord
from broker.schemas.candidates import Candidates, Pair
from broker.schemas.completion import Completed
from broker.schemas.keys import MadeKey
from broker.schemas.tasks import Task
from broker.schemas.tools import RegisteredTool, ToolStatus
from broker.schemas.values import Nothing
from broker.schemas.work import Work, WorkItems, WorkWithReports

# The place of parameters of other operations in a response.
_PARAMETERS: dict[Any, dict[str, str]] = {
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
# The request body that a response has all fields for, and their place.
_BODIES: dict[Any, tuple[Any, dict[str, str]]] = {
    Candidates: (Pair, {"task_id": "/tasks/0/id", "tool_id": "/tools/0/id"}),
}


def links(response: Any, operations: list[Operation]) -> dict[str, Any]:
    """Return the links of a type of response, by the id of the operation that each leads to."""
    described: dict[str, Any] = {}
    parameters = _PARAMETERS.get(response, {})
    body, body_fields = _BODIES.get(response, (Nothing, {}))
    for operation in operations:
        if accepted := {name: parameters[name] for name in operation.parameters if name in parameters}:
            described[operation.id] = {"operationId": operation.id, "parameters": _in_body(accepted)}
        if body_fields and operation.body is body:
            described[operation.id] = {"operationId": operation.id, "requestBody": _in_body(body_fields)}
    return described


def _in_body(pointers: dict[str, str]) -> dict[str, str]:
    return {name: f"$response.body#{pointer}" for name, pointer in pointers.items()}
