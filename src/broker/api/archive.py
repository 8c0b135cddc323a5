"""/v1/archive: list, read, export, delete and accept archive records."""

from collections.abc import AsyncIterator

import msgspec
from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK

from broker.errors import NothingToAccept, TaskUnavailable, WorkNotFound
from broker.http.guards import ALL, OWN, Access, allow, allow_record, check_again
from broker.http.parameters import After, IdFilter, Limit, Since, Until, time_parameter, work_id_of
from broker.schemas.archive import ArchivePage, ArchiveRecord
from broker.schemas.states import Outcome
from broker.schemas.values import Nothing
from broker.service import Service
from broker.store import acceptance, archive
from broker.store.replica_reads import read_page

NDJSON = "application/x-ndjson"

# The size of one query of an export, which bounds the memory for a slow client.
_PORTION = 200
_PORTION_BYTES = 2**20

_encode_lines = msgspec.json.Encoder().encode_lines


class ArchiveController(Controller):
    """The archive: every attempt with its reports."""

    path = "/v1/archive"
    tags = ("Archive",)

    @get(guards=[allow(submitter=OWN, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        task_id: IdFilter = None,
        tool_id: IdFilter = None,
        outcome: FromQuery[Outcome | None] = None,
        since: Since = None,
        until: Until = None,
        limit: Limit = 100,
        after: After = None,
    ) -> ArchivePage:
        """List the archive, the newest first."""
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
        task_id: IdFilter = None,
        tool_id: IdFilter = None,
        outcome: FromQuery[Outcome | None] = None,
        since: Since = None,
        until: Until = None,
    ) -> Stream:
        """Read all of it, the newest first: a record a line, as long as it takes.

        It ends with the last record; a connection that is lost before ends without the last chunk.
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
        """Read one record."""
        record = await service.store.read_one(archive.find, work_id_of(work_id))
        if record is None:
            raise WorkNotFound
        return record

    @delete("/{work_id:str}", guards=[allow()], errors=[WorkNotFound])
    async def remove(self, work_id: FromPath[str], service: NamedDependency[Service]) -> None:
        """Delete a record for good; a task that ended by it is not known any more."""
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
        """Take a late result as the task's, while the task waits for another attempt or is held as failed."""
        accepted = await service.store.one(acceptance.accept, work_id_of(work_id))
        if accepted.record is None:
            raise WorkNotFound
        match accepted.status:
            case "nothing_to_accept":
                raise NothingToAccept
            case "task_unavailable":
                raise TaskUnavailable(
                    "A late result is taken while its task waits or has failed;"
                    " this one is with a tool or has ended."
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
