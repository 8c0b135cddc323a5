"""The links of the OpenAPI document, from a response to the operations that accept values of it."""

from typing import Any

from broker.http.openapi_operations import Operation
from broker.schemas import archive, candidates, completion, keys, tasks, tools, work
from broker.schemas.values import Nothing

# The location in a response of the parameters of other operations.
_PARAMETERS: dict[Any, dict[str, str]] = {
    tools.ToolStatus: {"tool_id": "/id"},
    tools.RegisteredTool: {"tool_id": "/id"},
    tasks.Task: {"task_id": "/id"},
    work.Work: {"work_id": "/id"},
    work.WorkItems: {"work_id": "/items/0/id"},
    work.WorkWithReports: {"work_id": "/id"},
    completion.Completed: {"work_id": "/archived/work_id", "task_id": "/archived/task_id"},
    archive.ArchiveRecord: {"work_id": "/work_id"},
    keys.CreatedKey: {"key_name": "/name"},
}
# The request body whose fields are all in a response, with their locations.
_BODIES: dict[Any, tuple[Any, dict[str, str]]] = {
    candidates.Candidates: (candidates.Pair, {"task_id": "/tasks/0/id", "tool_id": "/tools/0/id"}),
}


def links(response: Any, operations: list[Operation]) -> dict[str, Any]:
    """Return the links of a type of response, by the ids of the operations that they lead to."""
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
