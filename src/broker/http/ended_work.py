"""Handle a tool's request about work that has ended. The request still renews the tool's lease."""

from uuid import UUID

from broker.errors import WorkEnded, WorkNotFound
from broker.http.guards import ALL, Access, check_again
from broker.schemas.archive import ArchiveRecord
from broker.service import Service
from broker.store import archive, leases


async def ended_record(service: Service, work_id: UUID) -> ArchiveRecord:
    """Return the archive record of work that has ended.

    Raises:
        WorkNotFound: There is no such record.
    """
    record = await service.store.read_one(archive.find, work_id)
    if record is None or record.tool_id is None:
        raise WorkNotFound
    return record


async def work_has_ended(service: Service, access: Access, work_id: UUID) -> WorkEnded:
    """Return the error for a tool's request about work that has ended, and renew the tool's lease.

    Raises:
        VoidToken: The token is invalid.
        WorkNotFound: There is no such work.
    """
    if access.caller.token is not None:
        await check_again(service, access, at_once=True)
    record = await ended_record(service, work_id)
    await renew_lease(service, access, record)
    return WorkEnded(record.outcome)


async def renew_lease(service: Service, access: Access, record: ArchiveRecord) -> None:
    """Renew the lease of the tool if it made the request itself."""
    if record.tool_id is not None and is_its_tool(access, record):
        await service.store.one(leases.keep, access.caller.beat(record.tool_id))


def is_its_tool(access: Access, record: ArchiveRecord) -> bool:
    """Return whether the tool that had the work made the request, not a later tool with the same id."""
    return access.reach is ALL or access.tool == record.tool_id
