"""/v1/work: what tools do."""

import contextlib
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_202_ACCEPTED

from broker.errors import (
    BrokerError,
    PayloadTooLarge,
    TaskNotFound,
    TaskUnavailable,
    ToolNotFound,
    ToolUnavailable,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    WorkEnded,
    WorkNotFound,
)
from broker.http.guards import (
    ALL,
    OWN,
    Access,
    allow,
    allow_work,
    check_again,
    has_tool,
    is_tools,
    void_token,
)
from broker.http.parameters import After, IdFilter, Limit, Wait, also, work_id_of
from broker.http.waiting import next_work, prefers_minimal, wait_for
from broker.schemas.archive import ArchiveRecord
from broker.schemas.candidates import AssignedPair, AssignedPairs, Pair, Pairs, PairStatus
from broker.schemas.completion import (
    Completed,
    CompletedBatch,
    CompletedStatus,
    CompletedWork,
    Completion,
    WorkCompletions,
)
from broker.schemas.states import WORK_STATES, WorkState
from broker.schemas.values import Nothing
from broker.schemas.work import (
    NewCancellation,
    NewReport,
    Reported,
    ReportPage,
    Work,
    WorkPage,
    WorkWithReports,
)
from broker.service import Service
from broker.store import archive, assignment, cancellation, completion, ended_work, leases, reports, work
from broker.store.cancellation import Cancellation
from broker.store.replica_reads import read_page
from broker.trace_context import TraceContext
from broker.wake.listener import WORK

_STATUS: dict[completion.EndingStatus, CompletedStatus] = {
    "ended": "archived",
    "same": "exists",
    "other": "work_ended",
    "unknown": "work_not_found",
}


_REFUSALS: dict[PairStatus, type[BrokerError]] = {
    "task_not_found": TaskNotFound,
    "task_unavailable": TaskUnavailable,
    "tool_not_found": ToolNotFound,
    "tool_unavailable": ToolUnavailable,
}

_MAY_READ = allow_work(tool=OWN, token=OWN, assigner=ALL, operator=ALL)
_MAY_DO = allow_work(fenced=True, tool=OWN, token=OWN)


class WorkController(Controller):
    """Work: one attempt of one tool at one task."""

    path = "/v1/work"
    tags = ("Work",)

    @get(guards=[allow(tool=OWN, token=OWN, assigner=ALL, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        tool_id: IdFilter = None,
        task_id: IdFilter = None,
        in_state: Annotated[WorkState | None, QueryParameter(name="state")] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> WorkPage:
        """List the work under way, in the order of its assignment."""
        if (own := access.caller.tool_id) is not None:
            if tool_id not in (None, own):
                return WorkPage(items=[], next=None)
            tool_id = own
        which = work.WorkFilter(tool_id, task_id, in_state, registered_by=access.key)
        return await read_page(service.primary_reads, work.page, which, limit=limit, after=after)

    @post(
        tags=["The assigner"],
        fast_path=True,
        guards=[allow(assigner=ALL)],
        responses={HTTP_200_OK: also(Work, "The same pair again.")},
        errors=[*_REFUSALS.values()],
    )
    async def assign(self, data: JSONBody[Pair], service: NamedDependency[Service]) -> Response[Work]:
        """Give a task to a tool. The same pair again is answered with the same work: 200."""
        assigned = await service.store.one(assignment.assign, data)
        if assigned.work is None:
            raise _REFUSALS[assigned.status]
        status = HTTP_201_CREATED if assigned.status == "assigned" else HTTP_200_OK
        return Response(assigned.work, status_code=status)

    @post(
        "/batch", status_code=HTTP_200_OK, fast_path=True, tags=["The assigner"], guards=[allow(assigner=ALL)]
    )
    async def assign_many(self, data: JSONBody[Pairs], service: NamedDependency[Service]) -> AssignedPairs:
        """Give up to 10,000 tasks to tools, each pair for itself; an earlier pair wins over a later one."""
        answers = await service.store.each(assignment.assign_briefly, data.items)
        return AssignedPairs(
            items=[
                AssignedPair(task_id=pair.task_id, tool_id=pair.tool_id, status=status, work_id=work_id)
                for pair, (status, work_id) in zip(data.items, answers, strict=True)
            ]
        )

    @get("/{work_id:str}", guards=[_MAY_READ], errors=[WorkNotFound], hands_on_trace=True)
    async def read(
        self,
        request: Request[Any, Any, Any],
        work_id: FromPath[str],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
        after_version: Annotated[
            int | None,
            QueryParameter(ge=0, le=2**31 - 1, description="Answer once the version is above this."),
        ] = None,
    ) -> Response[WorkWithReports]:
        """Read work with its latest reports; with `wait`, once its version is above `after_version`.

        With `Prefer: return=minimal` (RFC 7240) only `state`, `version` and `cancel_requested`, to watch it.
        """
        id_ = work_id_of(work_id)
        first: int | None = after_version
        is_minimal = prefers_minimal(request)

        async def look() -> work.TracedWork:
            read = work.status if is_minimal else work.with_reports
            if (found := await service.store.read(read, id_)) is None:
                raise WorkNotFound
            return found

        def moved(seen: work.TracedWork) -> bool:
            nonlocal first
            first = seen.work.version if first is None else first
            return seen.work.version > first or seen.work.state not in WORK_STATES

        seen = await wait_for(
            request,
            service,
            access,
            look,
            until=moved,
            wait=wait,
            topic=WORK,
            key=str(id_),
            tool=access.tool,
        )
        headers = {"Preference-Applied": "return=minimal"} if is_minimal else _handed_on(seen.trace_context)
        content: Any = seen.work
        return Response(content, headers=headers)

    @post(
        "/{work_id:str}/start",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[_MAY_DO],
        errors=[WorkNotFound, WorkEnded],
        hands_on_trace=True,
    )
    async def start(
        self,
        work_id: FromPath[str],
        data: JSONBody[Nothing],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Response[Work]:
        """Say that the tool has begun."""
        started = await service.store.one(work.start, work.Start(work_id_of(work_id), access.caller.token))
        if started is None:
            raise await _too_late(service, access, work_id_of(work_id))
        return Response(started.work, headers=_handed_on(started.trace_context))

    @post(
        "/{work_id:str}/reports",
        fast_path=True,
        guards=[_MAY_DO],
        responses={HTTP_200_OK: also(Reported, "The same report again.")},
        errors=[WorkNotFound, WorkEnded],
        hands_on_trace=True,
    )
    async def report(
        self,
        work_id: FromPath[str],
        data: JSONBody[NewReport],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Response[Reported]:
        """Report progress. The same `id` again is not written twice: 200."""
        id_ = work_id_of(work_id)
        report = reports.ReportOf(id_, data, access.caller.token)
        taken = await service.store.one(reports.write, report, size=len(data.data))
        if taken is None:
            raise await _too_late(service, access, id_)
        if not taken.is_stored:
            raise PayloadTooLarge(
                "This work has as many reports as one work may have: 100,000, or 128 MiB of them."
                " Report less often, or keep large data elsewhere and report where."
            )
        answer = Reported(
            id=taken.id, cancel_requested=taken.cancel_requested, lease_expires_at=taken.lease_expires_at
        )
        status = HTTP_201_CREATED if taken.created else HTTP_200_OK
        return Response(answer, status_code=status, headers=_handed_on(taken.trace_context))

    @get("/{work_id:str}/reports", guards=[_MAY_READ], errors=[WorkNotFound])
    async def reports(
        self,
        work_id: FromPath[str],
        service: NamedDependency[Service],
        limit: Limit = 100,
        after: After = None,
    ) -> ReportPage:
        """The reports on work, in order; on ended work, those in the archive."""
        found = await service.primary_reads.read(reports.page, work_id_of(work_id), limit=limit, after=after)
        if found is None:
            raise WorkNotFound
        return found

    @post(
        "/{work_id:str}/complete",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[_MAY_DO],
        errors=[WorkNotFound, WorkEnded],
    )
    async def complete(
        self,
        request: Request[Any, Any, Any],
        work_id: FromPath[str],
        data: JSONBody[Completion],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Completed:
        """End work: all of it is copied to the archive, and the tool has room again.

        The same outcome again is answered with the same record. With `next_wait_seconds` the call waits for
        the tool's next work.
        """
        id_ = work_id_of(work_id)
        token = access.caller.token
        ending = completion.Ending(id_, data.outcome, data.result, data.error, data.retry, token)
        ended = await service.store.one(completion.complete, ending, size=len(data.result))
        if ended.status == "void":
            raise void_token(service, access)
        if (record := ended.record) is None:
            raise WorkNotFound
        if ended.status != "ended":
            await _heard(service, access, record)
        if ended.status == "other":
            may_be_taken = record.late is not None and record.outcome != "succeeded"
            raise WorkEnded(record.outcome, late=f"/v1/archive/{id_}/accept" if may_be_taken else None)
        following: list[Work] | None = None
        if data.next_wait_seconds > 0 and record.tool_id is not None and _is_there(access, record):
            # Whatever keeps it from waiting does not undo what is done.
            with contextlib.suppress(TooManyRequests, Unauthenticated, Unavailable):
                following = await next_work(request, service, access, record.tool_id, data.next_wait_seconds)
        return Completed(archived=record, next=following or [])

    @post(
        "/complete", status_code=HTTP_200_OK, fast_path=True, guards=[allow(fenced=True, tool=OWN, token=OWN)]
    )
    async def complete_many(
        self,
        data: JSONBody[WorkCompletions],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> CompletedBatch:
        """End up to 1,000 pieces of work, each for itself."""
        others = await _of_others(data, service, access)
        endings = [
            completion.Ending(
                item.work_id, item.outcome, item.result, item.error, item.retry, access.caller.token
            )
            for item in data.items
            if item.work_id not in others
        ]
        fates = await service.store.each(completion.complete_briefly, endings)
        if "void" in fates:
            raise void_token(service, access)
        late = {ending.work_id for ending, fate in zip(endings, fates, strict=True) if fate != "ended"}
        tools = await service.store.read(ended_work.tools_of, late) if late else []
        if theirs := [
            access.caller.beat(tool)
            for tool in tools
            if access.reach is ALL or await has_tool(service.owners, access.caller, tool)
        ]:
            await service.store.each(leases.keep, theirs)
        statuses = (_STATUS[fate] for fate in fates)
        return CompletedBatch(
            items=[
                CompletedWork(
                    work_id=item.work_id,
                    status="forbidden" if item.work_id in others else next(statuses),
                )
                for item in data.items
            ]
        )

    @post(
        "/{work_id:str}/cancel",
        status_code=HTTP_202_ACCEPTED,
        guards=[allow(operator=ALL)],
        errors=[WorkNotFound, WorkEnded],
    )
    async def cancel(
        self, work_id: FromPath[str], data: JSONBody[NewCancellation], service: NamedDependency[Service]
    ) -> Work:
        """Ask the tool to stop. Its task is cancelled with the work, or goes back (`requeue`)."""
        id_ = work_id_of(work_id)
        asked = await service.store.one(cancellation.cancel, Cancellation(id_, data.requeue))
        if asked is None:
            raise WorkEnded((await _ended(service, id_)).outcome)
        return asked


def _handed_on(context: TraceContext | None) -> dict[str, str] | None:
    """The headers by which a tool is told the trace that its task was submitted in."""
    return context.headers() if context else None


async def _of_others(data: WorkCompletions, service: Service, access: Access) -> set[UUID]:
    """Which of the works are not those of the tools that the caller may speak for."""
    if access.reach is ALL:
        return set()
    ids = [item.work_id for item in data.items]
    owners = await service.owners.of_works(ids)
    return {
        id_
        for id_, owner in zip(ids, owners, strict=True)
        if owner is not None and not is_tools(access.caller, owner)
    }


async def _ended(service: Service, id_: UUID) -> ArchiveRecord:
    """The record of work that is not under way."""
    record = await service.store.read_one(archive.find, id_)
    if record is None or record.tool_id is None:
        raise WorkNotFound
    return record


async def _too_late(service: Service, access: Access, id_: UUID) -> WorkEnded:
    """That a tool's work has ended; the tool is there.

    Raises:
        VoidToken: The token is void, whatever became of the work.
    """
    if access.caller.token is not None:
        await check_again(service, access, at_once=True)
    record = await _ended(service, id_)
    await _heard(service, access, record)
    return WorkEnded(record.outcome)


async def _heard(service: Service, access: Access, record: ArchiveRecord) -> None:
    """Renew the lease of a tool that calls about work that has ended: it is there."""
    if record.tool_id is not None and _is_there(access, record):
        await service.store.one(leases.keep, access.caller.beat(record.tool_id))


def _is_there(access: Access, record: ArchiveRecord) -> bool:
    """Whether it is the tool that had the work that calls, and no other of its id."""
    return access.reach is ALL or access.tool == record.tool_id
