"""/v1/tools: register, list, read, change and delete tools; heartbeats and work of a tool."""

from typing import Annotated, Any

from litestar import Controller, Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED
from msgspec import UNSET
from msgspec.structs import asdict

from broker.access.keyring import hashed, new_secret, token_of
from broker.errors import Forbidden, ToolBusy, ToolNotFound
from broker.http.guards import ALL, OWN, Access, allow, allow_tool, void_token
from broker.http.parameters import After, Force, Limit, Wait, extra_response, id_of
from broker.http.waiting import next_work
from broker.schemas.states import ToolState
from broker.schemas.tools import Heartbeat, NewTool, RegisteredTool, ToolChange, ToolPage, ToolStatus
from broker.schemas.values import Nothing
from broker.schemas.work import WorkItems
from broker.service import Service
from broker.store import leases, tools
from broker.store.ownership import VOID
from broker.store.replica_reads import read_page


class ToolsController(Controller):
    """Tools: programs, instruments and machines that do work."""

    path = "/v1/tools"
    tags = ("Tools",)

    @post(
        guards=[allow(tool=OWN)],
        responses={
            HTTP_200_OK: extra_response(RegisteredTool, "The tool existed already. Its old token is invalid.")
        },
    )
    async def register(
        self, data: JSONBody[NewTool], service: NamedDependency[Service], access: NamedDependency[Access]
    ) -> Response[RegisteredTool]:
        """Register a tool.

        The broker shows the `token` only in this response. If a tool with this id exists, for example after a
        restart of its program, the broker updates it and responds with 200. The old token becomes invalid.
        Unless `resume` is true, work that the tool had started ends: the broker archives it as `lost`, and
        its tasks become available again. The tool keeps work that is assigned and not started.
        """
        secret = new_secret()
        registration = tools.Registration(
            data, hashed(secret), access.caller.key, any_owner=access.key is None
        )
        result = await service.store.one(tools.register, registration, size=len(data.skills))
        if result.tool is None:
            raise Forbidden("Another key has registered a tool with this id. Choose another id.")
        service.owners.forget_tool(result.tool.id)
        registered = RegisteredTool(**asdict(result.tool), token=token_of(result.tool.id, secret))
        return Response(registered, status_code=HTTP_201_CREATED if result.created else HTTP_200_OK)

    @get(guards=[allow(tool=OWN, assigner=ALL, operator=ALL)])
    async def list(
        self,
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        in_state: Annotated[
            ToolState | None, QueryParameter(name="state", description="Only tools in this state.")
        ] = None,
        limit: Limit = 100,
        after: After = None,
    ) -> ToolPage:
        """List the tools in the order of their ids."""
        return await read_page(
            service.primary_reads,
            tools.page,
            state=in_state,
            registered_by=access.key,
            limit=limit,
            after=after,
        )

    @get(
        "/{tool_id:str}",
        guards=[allow_tool(tool=OWN, token=OWN, assigner=ALL, operator=ALL)],
        errors=[ToolNotFound],
    )
    async def read(self, tool_id: FromPath[str], service: NamedDependency[Service]) -> ToolStatus:
        """Read a tool."""
        rows = await service.store.read(tools.by_ids, [id_of(tool_id, ToolNotFound)])
        if not rows:
            raise ToolNotFound
        return rows[0]

    @patch("/{tool_id:str}", guards=[allow_tool(tool=OWN, token=OWN, operator=ALL)], errors=[ToolNotFound])
    async def change(
        self,
        tool_id: FromPath[str],
        data: JSONBody[ToolChange],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> ToolStatus:
        """Change a tool.

        A draining tool finishes its current work and gets no new work. An operator may change only
        `draining`.
        """
        if not access.acts_as_tool and any(
            value is not UNSET for name, value in asdict(data).items() if name != "draining"
        ):
            raise Forbidden(
                "An operator may change only `draining`. The tool itself changes the other fields."
            )
        change = tools.Change(id_of(tool_id, ToolNotFound), data, access.caller.token)
        changed = await service.store.one(tools.change, change)
        if changed == VOID:
            raise void_token(service, access)
        if changed is None:
            raise ToolNotFound
        return changed

    @delete(
        "/{tool_id:str}",
        guards=[allow_tool(tool=OWN, token=OWN, operator=ALL)],
        errors=[ToolNotFound, ToolBusy],
    )
    async def remove(
        self,
        tool_id: FromPath[str],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        force: Force = False,
    ) -> None:
        """Delete a tool.

        If the tool has unfinished work, the response is 409. With `force`, the broker archives this work as
        `lost`, and its tasks become available again.
        """
        deletion = tools.ToolDeletion(id_of(tool_id, ToolNotFound), force, access.caller.token)
        match await service.store.one(tools.delete, deletion):
            case "void":
                raise void_token(service, access)
            case "busy":
                raise ToolBusy
            case "unknown":
                raise ToolNotFound
        service.owners.forget_tool(tool_id)

    @post(
        "/{tool_id:str}/heartbeat",
        status_code=HTTP_200_OK,
        fast_path=True,
        guards=[allow_tool(fenced=True, tool=OWN, token=OWN)],
        errors=[ToolNotFound],
    )
    async def heartbeat(
        self,
        tool_id: FromPath[str],
        data: JSONBody[Nothing],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
    ) -> Heartbeat:
        """Renew the lease of a tool, and return the ids of the work that it must stop."""
        beat = access.caller.beat(id_of(tool_id, ToolNotFound))
        renewed = await service.store.one(leases.heartbeat, beat)
        if renewed == VOID or (renewed is None and beat.token_hash):
            raise void_token(service, access)
        if renewed is None:
            raise ToolNotFound
        return renewed

    @get(
        "/{tool_id:str}/work",
        fast_path=True,
        guards=[allow_tool(fenced=True, tool=OWN, token=OWN, assigner=ALL, operator=ALL)],
        errors=[ToolNotFound],
    )
    async def work(
        self,
        request: Request[Any, Any, Any],
        tool_id: FromPath[str],
        service: NamedDependency[Service],
        access: NamedDependency[Access],
        wait: Wait = None,
    ) -> WorkItems:
        """List the work that is assigned to the tool and not started.

        With `wait`, the broker responds as soon as the tool has such work. A response has at most 8 MiB of
        work, but at least one item. If there is more, request it after the tool has started these items.
        """
        items = await next_work(request, service, access, id_of(tool_id, ToolNotFound), wait)
        if items is None:
            raise ToolNotFound
        return WorkItems(items=items)
