"""/v1/tasks: submit, list, read, explain, retry and cancel tasks."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED, HTTP_204_NO_CONTENT

from broker.errors import Forbidden, TaskEnded, TaskNotFound
from broker.http.guards import ALL, OWN, Access, allow, allow_task, last_segment
from broker.http.parameters import After, Force, Limit, Wait, extra_response, id_of, json_parameter
from broker.http.waiting import wait_for
from broker.schemas.states import TASK_STATES, LiveTaskState
from broker.schemas.tasks import (
    Explanation,
    NewRemark,
    NewTask,
    NewTasks,
    Remarked,
    RemarkedTasks,
    SubmittedTask,
    SubmittedTasks,
    Task,
    TaskPage,
    TaskRemark,
    TaskRemarks,
)
from broker.schemas.values import Nothing
from broker.service import Service
from broker.store import deletion, submission, tasks
from broker.store.explanation import explain as explanation_of
from broker.store.replica_reads import read_page
from broker.trace_context import TraceContext
from broker.wake.listener import TASK

# A client may choose these ids for tasks. For POST, these paths have another meaning.
_RESERVED_IDS = ["/batch", "/remarks"]

_MAY_READ = allow_task(submitter=OWN, assigner=ALL, operator=ALL)
_MAY_CHANGE = allow_task(submitter=OWN, operator=ALL)


class TasksController(Controller):
    """Tasks."""

    path = "/v1/tasks"
    tags = ("Tasks",)

    @post(
        fast_path=True,
        guards=[allow(submitter=OWN)],
        responses={HTTP_200_OK: extra_response(Task, "A task with this id exists. Nothing has changed.")},
    )
    async def submit(
        self,
        data: JSONBody[NewTask],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        trace_context: NamedDependency[TraceContext | None],
    ) -> Response[Task]:
        """Submit a task.

        If a task with this id exists, live or in the archive, the broker changes nothing and returns that
        task with 200. So a submission with an `id` is safe to repeat.
        """
        new = _submission(data, access, trace_context)
        size = len(data.needs) + len(data.payload)
        submitted = await service.store.one(submission.submit, new, size=size)
        if submitted.task is None:
            raise Forbidden("Another key has submitted a task with this id. Choose another id.")
        status = HTTP_201_CREATED if submitted.created else HTTP_200_OK
        return Response(submitted.task, status_code=status)

    @post("/batch", status_code=HTTP_200_OK, fast_path=True, guards=[allow(submitter=OWN)])
    async def submit_many(
        self,
        data: JSONBody[NewTasks],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        trace_context: NamedDependency[TraceContext | None],
    ) -> SubmittedTasks:
        """Submit up to 10,000 tasks.

        The broker writes all of them or none. Tasks whose ids exist already do not change.
        """
        submissions = [_submission(task, access, trace_context) for task in data.items]
        results = await service.store.many(submission.submit_briefly, submissions)
        return SubmittedTasks(
            items=[
                SubmittedTask(id=id_, status="created" if created else "exists") for id_, created in results
            ]
        )

    @get(guards=[allow(submitter=OWN, assigner=ALL, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        in_state: Annotated[
            LiveTaskState | None, QueryParameter(name="state", description="Only tasks in this state.")
        ] = None,
        needs: Annotated[
            str | None,
            QueryParameter(
                description="A JSON value. Only tasks whose `needs` contain it, as PostgreSQL's `@>`"
                " defines.",
                schema_extra={"contentMediaType": "application/json", "minLength": 1},
            ),
        ] = None,
        older_than_seconds: Annotated[
            float | None,
            QueryParameter(
                ge=0, le=1e9, description="Only tasks that were submitted at least this long ago."
            ),
        ] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> TaskPage:
        """List the live tasks, in the order of submission."""
        valid_needs = json_parameter(needs, "needs", service.settings)
        which = tasks.TaskFilter(in_state, valid_needs, older_than_seconds, access.key)
        return await read_page(service.replica_reads, tasks.page, which, limit=limit, after=after)

    @get("/{task_id:str}", fast_path=True, guards=[_MAY_READ], errors=[TaskNotFound])
    async def read(
        self,
        request: Request[Any, Any, Any],
        task_id: FromPath[str],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
    ) -> Task:
        """Read a task, live or ended.

        With `wait`, the broker responds as soon as the task has ended or is `failed`.
        """
        return await _read(request, task_id, service, access, wait)

    @delete(
        "/{task_id:str}",
        status_code=HTTP_204_NO_CONTENT,
        guards=[_MAY_CHANGE],
        responses={
            HTTP_202_ACCEPTED: extra_response(None, "The task is running. The broker asks its tool to stop.")
        },
        errors=[TaskNotFound],
    )
    async def remove(
        self, task_id: FromPath[str], service: NamedDependency[Service], force: Force = False
    ) -> Response[None]:
        """Cancel a task.

        If the task is running, the broker asks its tool to stop and responds with 202. Otherwise, and with
        `force`, the task ends at once as `cancelled`, with a record in the archive.
        """
        return await _remove(task_id, service, force=force)

    @get(_RESERVED_IDS, include_in_schema=False, guards=[_MAY_READ])
    async def read_by_reserved_id(
        self,
        request: Request[Any, Any, Any],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
    ) -> Task:
        """Read a task whose id is also the last segment of an API path."""
        return await _read(request, last_segment(request.scope), service, access, wait)

    @delete(_RESERVED_IDS, status_code=HTTP_204_NO_CONTENT, include_in_schema=False, guards=[_MAY_CHANGE])
    async def remove_by_reserved_id(
        self,
        request: Request[Any, Any, Any],
        service: NamedDependency[Service],
        force: Force = False,
    ) -> Response[None]:
        """Cancel a task whose id is also the last segment of an API path."""
        return await _remove(last_segment(request.scope), service, force=force)

    @get("/{task_id:str}/explain", guards=[_MAY_READ], errors=[TaskNotFound])
    async def explain(self, task_id: FromPath[str], service: NamedDependency[Service]) -> Explanation:
        """Explain why a task has not run yet."""
        explanation = await service.primary_reads.read(explanation_of, id_of(task_id, TaskNotFound))
        if explanation is None:
            raise TaskNotFound
        return explanation

    @post(
        "/{task_id:str}/retry",
        status_code=HTTP_200_OK,
        guards=[_MAY_CHANGE],
        errors=[TaskNotFound, TaskEnded],
    )
    async def retry(
        self, task_id: FromPath[str], data: JSONBody[Nothing], service: NamedDependency[Service]
    ) -> Task:
        """Retry a failed task.

        The task becomes available again, and the broker counts its attempts from 0. A live task that has not
        failed does not change.
        """
        task = await service.store.one(tasks.retry, id_of(task_id, TaskNotFound))
        if task is None:
            raise TaskNotFound
        if task.state in ("succeeded", "cancelled"):
            raise TaskEnded
        return task

    @put("/{task_id:str}/remark", tags=["The assigner"], guards=[allow(assigner=ALL)], errors=[TaskNotFound])
    async def remark(
        self, task_id: FromPath[str], data: JSONBody[NewRemark], service: NamedDependency[Service]
    ) -> Task:
        """Set the remark of a task: the assigner's explanation why the task still waits.

        The remark stays until the task is assigned.
        """
        await service.store.one(
            tasks.remark, TaskRemark(task_id=id_of(task_id, TaskNotFound), text=data.text)
        )
        return await _find(service, task_id)

    @post("/remarks", status_code=HTTP_200_OK, tags=["The assigner"], guards=[allow(assigner=ALL)])
    async def remark_many(
        self, data: JSONBody[TaskRemarks], service: NamedDependency[Service]
    ) -> RemarkedTasks:
        """Set the remarks of up to 10,000 tasks."""
        known = await service.store.each(tasks.remark, data.items)
        return RemarkedTasks(
            items=[
                Remarked(task_id=remark.task_id, status="ok" if is_known else "task_not_found")
                for remark, is_known in zip(data.items, known, strict=True)
            ]
        )


def _submission(
    task: NewTask, access: Access, trace_context: TraceContext | None
) -> submission.TaskSubmission:
    return submission.TaskSubmission(task, access.caller.key, access.key is None, trace_context)


async def _read(
    request: Request[Any, Any, Any], task_id: str, service: Service, access: Access, wait: float | None
) -> Task:
    id_of(task_id, TaskNotFound)

    async def read_state() -> Task:
        return await _find(service, task_id)

    def has_ended(task: Task) -> bool:
        return TASK_STATES[task.state].final

    return await wait_for(
        request, service, access, read_state, until=has_ended, wait=wait, topic=TASK, key=task_id
    )


async def _remove(task_id: str, service: Service, *, force: bool) -> Response[None]:
    match await service.store.one(
        deletion.delete, deletion.TaskDeletion(id_of(task_id, TaskNotFound), force)
    ):
        case "unknown":
            raise TaskNotFound
        case "asked":
            return Response(None, status_code=HTTP_202_ACCEPTED)
    return Response(None, status_code=HTTP_204_NO_CONTENT)


async def _find(service: Service, task_id: str) -> Task:
    task = await service.store.read_one(tasks.find, task_id)
    if task is None:
        raise TaskNotFound
    return task
