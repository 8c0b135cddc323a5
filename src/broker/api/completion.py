"""/v1/work/complete: complete work."""

import contextlib
from typing import Any
from uuid import UUID

from litestar import Controller, Request, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_200_OK

from broker.errors import TooManyRequests, Unauthenticated, Unavailable, WorkEnded, WorkNotFound
from broker.http.ended_work import is_its_tool, renew_lease
from broker.http.guards import ALL, OWN, Access, allow, allow_work, owns_tool, owns_work, void_token
from broker.http.parameters import work_id_of
from broker.http.waiting import next_work
from broker.schemas.completion import (
    Completed,
    CompletedBatch,
    CompletedStatus,
    CompletedWork,
    Completion,
    WorkCompletions,
)
from broker.schemas.work import Work
from broker.service import Service
from broker.store import completion, ended_work, leases
from broker.wake.listener import TOOL

_STATUS: dict[completion.EndingStatus, CompletedStatus] = {
    "ended": "archived",
    "same": "exists",
    "other": "work_ended",
    "unknown": "work_not_found",
}

_MAY_COMPLETE = allow_work(fenced=True, tool=OWN, token=OWN)


class CompletionController(Controller):
    """The completion of work."""

    path = "/v1/work"
    tags = ("Work",)

    @post(
        "/{work_id:str}/complete",
        operation_id="work_complete",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[_MAY_COMPLETE],
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
        """Complete work.

        The broker moves the work with its reports to the archive, and the tool has free capacity again. You
        can safely repeat the request with the same outcome: it returns the same record. With
        `next_wait_seconds`, the request then waits for the next work of the tool.
        """
        id_ = work_id_of(work_id)
        token = access.caller.token
        ending = completion.Ending(id_, data.outcome, data.result, data.error, data.retry, token)
        moment = service.waiters.moment(TOOL)
        ended = await service.store.one(completion.complete, ending, size=len(data.result))
        if ended.status == "void":
            raise void_token(service, access)
        if (record := ended.record) is None:
            raise WorkNotFound
        if ended.status != "ended":
            await renew_lease(service, access, record)
        if ended.status == "other":
            may_be_accepted = record.late is not None and record.outcome != "succeeded"
            raise WorkEnded(record.outcome, late=f"/v1/archive/{id_}/accept" if may_be_accepted else None)
        following: list[Work] | None = None
        if data.next_wait_seconds > 0 and record.tool_id is not None and is_its_tool(access, record):
            # The work has ended, so the response is a success even if the request cannot wait.
            with contextlib.suppress(TooManyRequests, Unauthenticated, Unavailable):
                following = await next_work(
                    request,
                    service,
                    access,
                    record.tool_id,
                    data.next_wait_seconds,
                    idle_since=moment if ended.is_tool_idle else None,
                )
        return Completed(archived=record, next=following or [])

    @post(
        "/complete",
        operation_id="work_complete_many",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[allow(fenced=True, tool=OWN, token=OWN)],
    )
    async def complete_many(
        self,
        data: JSONBody[WorkCompletions],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> CompletedBatch:
        """Complete up to 1,000 work items, each independently."""
        forbidden = await _forbidden(data, service, access)
        endings = [
            completion.Ending(
                item.work_id, item.outcome, item.result, item.error, item.retry, access.caller.token
            )
            for item in data.items
            if item.work_id not in forbidden
        ]
        fates = await service.store.each(completion.complete_briefly, endings)
        if "void" in fates:
            raise void_token(service, access)
        late = {ending.work_id for ending, fate in zip(endings, fates, strict=True) if fate != "ended"}
        tools = await service.store.read(ended_work.tools_of, late) if late else []
        if beats := [
            access.caller.beat(tool)
            for tool in tools
            if access.reach is ALL or await owns_tool(service.owners, access.caller, tool)
        ]:
            await service.store.each(leases.keep, beats)
        statuses = (_STATUS[fate] for fate in fates)
        return CompletedBatch(
            items=[
                CompletedWork(
                    work_id=item.work_id,
                    status="forbidden" if item.work_id in forbidden else next(statuses),
                )
                for item in data.items
            ]
        )


async def _forbidden(data: WorkCompletions, service: Service, access: Access) -> set[UUID]:
    """Return the ids of the work that the caller may not complete."""
    if access.reach is ALL:
        return set()
    ids = [item.work_id for item in data.items]
    owners = await service.owners.of_works(ids)
    return {
        id_
        for id_, owner in zip(ids, owners, strict=True)
        if owner is not None and not owns_work(access.caller, owner)
    }
