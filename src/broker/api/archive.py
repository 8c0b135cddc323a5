"""/v1/archive: how everything ended."""

from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK

from broker.api.parameters import TIME, After, IdFilter, Limit, time_parameter, work_id_of
from broker.api.service import Service
from broker.errors import NothingToAccept, TaskUnavailable, WorkNotFound
from broker.schemas import ArchivePage, ArchiveRecord, Nothing, Outcome
from broker.store import acceptance, archive


class Archive(Controller):
    """The archive: every attempt, with all that was reported on it."""

    path = "/v1/archive"
    tags = ("Archive",)

    @get()
    async def list(
        self,
        service: NamedDependency[Service],
        task_id: IdFilter = None,
        tool_id: IdFilter = None,
        outcome: FromQuery[Outcome | None] = None,
        since: Annotated[
            str | None, QueryParameter(description="Ended then or later.", schema_extra=TIME)
        ] = None,
        until: Annotated[str | None, QueryParameter(description="Ended before.", schema_extra=TIME)] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> ArchivePage:
        """List the archive, the newest first."""
        which = archive.ArchiveFilter(
            task_id, tool_id, outcome, time_parameter(since, "since"), time_parameter(until, "until")
        )
        return await service.store.read(archive.page, which, limit=limit, after=after)

    @get("/{work_id:str}", lean=True, errors=[WorkNotFound])
    async def read(self, work_id: FromPath[str], service: NamedDependency[Service]) -> ArchiveRecord:
        """Read one record."""
        record = await service.store.read_one(archive.find, work_id_of(work_id))
        if record is None:
            raise WorkNotFound
        return record

    @post(
        "/{work_id:str}/accept",
        status_code=HTTP_200_OK,
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
