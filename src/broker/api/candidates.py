"""/v1/candidates: the available tasks and tools. An assigner assigns them with `POST /v1/work`."""

from typing import Annotated, Any

from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from broker.errors import CursorExpired
from broker.http.guards import ALL, Access, allow
from broker.http.parameters import Wait
from broker.http.waiting import wait_for
from broker.schemas.candidates import Candidates
from broker.schemas.limits import MOST_ON_PAGE
from broker.service import Service
from broker.store import candidates
from broker.wake.listener import CANDIDATES


class CandidatesController(Controller):
    """The available tasks and tools."""

    path = "/v1/candidates"
    tags = ("The assigner",)

    @get(fast_path=True, guards=[allow(assigner=ALL, operator=ALL)], errors=[CursorExpired])
    async def read(
        self,
        request: Request[Any, Any, Any],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
        cursor: Annotated[
            str | None,
            QueryParameter(
                description="The `cursor` of the previous response. Returns only candidates that became"
                " available"
                " or changed since. Omit it to get all."
            ),
        ] = None,
        limit: Annotated[
            int, QueryParameter(ge=1, le=MOST_ON_PAGE, description="Maximum number of tasks, and of tools.")
        ] = MOST_ON_PAGE,
    ) -> Candidates:
        """Read the available tasks and tools.

        Without a cursor, the response has all of them, page by page. With the cursor of the last response, it
        has those that became available or changed after that response. The broker may return a candidate
        twice, but it never omits one. Remarks and lease renewals are not changes.
        """

        async def read_state() -> Candidates:
            if not access.caller.roles.isdisjoint(("assigner", "admin")):
                await service.attendance.note()
            return await service.store.read_one(candidates.read, candidates.CandidatesRequest(cursor, limit))

        def has_any(page: Candidates) -> bool:
            return bool(page.tasks or page.tools or page.more)

        return await wait_for(
            request, service, access, read_state, until=has_any, wait=wait, topic=CANDIDATES, read_last=False
        )
