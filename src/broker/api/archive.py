"""/v1/archive: list, read, export, delete and accept archive records."""

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK

from broker.errors import NothingToAccept, TaskUnavailable, WorkNotFound
from broker.http.guards import ALL, OWN, Access, allow, allow_record, check_again
from broker.http.parameters import (
    After,
    Limit,
    Since,
    TaskIdFilter,
    ToolIdFilter,
    Until,
    time_parameter,
    work_id_of,
)
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.states import Outcome
from broker.schemas.values import Nothing
from broker.service import Service
from broker.store import acceptance, archive
from broker.store.replica_reads import read_page

OutcomeFilter = Annotated[Outcome | None, QueryParameter(description="Only attempts with this outcome.")]

NDJSON = "application/x-ndjson"

# The size of one query of an export, which bounds the memory for a slow client.
_PORTION = 200
_PORTION_BYTES = 2**20

_encode_lines = msgspec.json.Encoder().encode_lines


class ArchiveController(Controller):
    """The archive: the records of all ended attempts, with their reports."""

    path = "/v1/archive"
    tags = ("Archive",)

    @get(guards=[allow(submitter=OWN, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        task_id: TaskIdFilter = None,
        tool_id: ToolIdFilter = None,
        outcome: OutcomeFilter = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        after: After = None,
    ) -> ArchivePage:
        """List the archive records, newest first."""
        which = _filter(access, task_id, tool_id, outcome, since, until)
        return await read_page(service.replica_reads, archive.page, which, limit=limit, after=after)

    @get(
        "/export",
        media_type=NDJSON,
        guards=[allow(submitter=OWN, operator=ALL)],
    )
    async def export(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        task_id: TaskIdFilter = None,
        tool_id: ToolIdFilter = None,
        outcome: OutcomeFilter = None,
        since: Since = None,
        until: Until = None,
    ) -> Stream:
        """Export the archive records, newest first, one JSON record per line.

        The number of records has no limit. A complete response ends with the last chunk of the chunked
        encoding. If the connection is lost before that, this chunk is missing.
        """
        which = _filter(access, task_id, tool_id, outcome, since, until)

        async def read(after: str | None) -> ArchivePage:
            await check_again(service, access)
            return await service.replica_reads.read(
                archive.page, which, limit=_PORTION, after=after, most_bytes=_PORTION_BYTES
            )

        async def lines(page: ArchivePage) -> AsyncIterator[bytes]:
            while True:
                portion, after = _encode_lines(page.items), page.next
                # Free the page before the next one is read.
                del page
                if portion:
                    yield portion
                if after is None:
                    return
                page = await read(after)

        return Stream(lines(await read(None)), media_type=NDJSON)

    @get(
        "/{work_id:str}",
        fast_path=True,
        guards=[allow_record(submitter=OWN, operator=ALL)],
        errors=[WorkNotFound],
    )
    async def read(self, work_id: FromPath[str], service: NamedDependency[Service]) -> ArchiveRecord:
        """Read an archive record."""
        record = await service.store.read_one(archive.find, work_id_of(work_id))
        if record is None:
            raise WorkNotFound
        return record

    @delete("/{work_id:str}", guards=[allow()], errors=[WorkNotFound])
    async def remove(self, work_id: FromPath[str], service: NamedDependency[Service]) -> None:
        """Delete an archive record permanently.

        If the attempt ended its task, the broker forgets the task, too.
        """
        if not await service.store.one(archive.delete, work_id_of(work_id)):
            raise WorkNotFound

    @post(
        "/{work_id:str}/accept",
        status_code=HTTP_200_OK,
        guards=[allow(operator=ALL)],
        errors=[WorkNotFound, NothingToAccept, TaskUnavailable],
    )
    async def accept(
        self, work_id: FromPath[str], data: JSONBody[Nothing], service: NamedDependency[Service]
    ) -> ArchiveRecord:
        """Accept a late result as the result of the task.

        A tool may complete work as `succeeded` after the broker has ended the work. The record keeps this
        late result as `late`. While the task waits for another attempt or is `failed`, an operator can accept
        the result. The record and the task are then `succeeded`.
        """
        accepted = await service.store.one(acceptance.accept, work_id_of(work_id))
        if accepted.record is None:
            raise WorkNotFound
        match accepted.status:
            case "nothing_to_accept":
                raise NothingToAccept
            case "task_unavailable":
                raise TaskUnavailable(
                    "The broker cannot accept the late result, because its task is assigned to a tool or has"
                    " ended. You can accept it while the task waits or is failed."
                )
        return accepted.record


def _filter(
    access: Access,
    task_id: str | None,
    tool_id: str | None,
    outcome: Outcome | None,
    since: str | None,
    until: str | None,
) -> archive.ArchiveFilter:
    return archive.ArchiveFilter(
        task_id,
        tool_id,
        outcome,
        time_parameter(since, "since"),
        time_parameter(until, "until"),
        created_by=access.key,
    )
