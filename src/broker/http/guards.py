"""Who may make which call: a guard, declared beside each handler.

A role may make a call about everything (`ALL`), or about what belongs to the caller's key (`OWN`). Where a
call is about a task, a tool, a work or a record, the guard sees to that; lists and batches are cut to it by
their handlers, which are told by `Access`. An admin may do everything.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.types import Scope
from msgspec import Struct
from msgspec.structs import replace

from broker.access.keyring import Caller
from broker.access.ownership import Owners
from broker.errors import Forbidden, NotFound, TaskNotFound, ToolNotFound, VoidToken, WorkNotFound
from broker.http.loopback import HEADERS, refuse_others
from broker.schemas.values import ID_PATTERN
from broker.service import Service
from broker.store.ownership import WorkOwner

_ID = re.compile(ID_PATTERN)
_REMEMBERED = 1_024
_TOLD = HEADERS | {b"authorization"}
_IN_PATHS = ("task_id", "tool_id", "work_id")


class Reach(Enum):
    """What a role may make a call about."""

    ALL = "all"
    OWN = "own"


ALL, OWN = Reach.ALL, Reach.OWN


class Access(Struct, frozen=True, kw_only=True):
    """That a caller may make a call.

    Args:
        caller: Who calls.
        reach: About what.
        bearer: The key or token that says so; it may be void by the time a call that waits is answered.
        client: Whose limits count: the key's, which are those of its tools, too; where there are no keys, the
            address's.
        tool: The tool that calls, about itself or its work, where that is known.
        fenced: Whether the statement that does what is asked refuses a void token.
    """

    caller: Caller
    reach: Reach
    bearer: str | None
    client: str
    tool: str | None = None
    fenced: bool = False

    @property
    def key(self) -> str | None:
        """The name of the key whose things alone the call is about; None: all things."""
        return self.caller.key if self.reach is OWN else None

    @property
    def acts_as_tool(self) -> bool:
        """Whether it is the tool that calls, or someone who may do all that it may."""
        return self.tool is not None or "admin" in self.caller.roles


# Whether something is the caller's, and the tool that it is about; None: there is no such thing.
OwnershipCheck = Callable[[Owners, Caller, str], Awaitable[tuple[bool | None, str | None]]]


class Allow:
    """A guard.

    Args:
        roles: Which role may make the call, about what; `token` is a tool by its token.
        judge: Whether what the path names is the caller's; none: the handler sees to it.
        missing: What it is said to be that is not there, and so nobody's own.
        fenced: Whether the statement that does what is asked refuses a void token and renews the lease.
    """

    def __init__(
        self,
        roles: Mapping[str, Reach],
        judge: OwnershipCheck | None = None,
        missing: type[NotFound] = NotFound,
        *,
        fenced: bool = False,
    ) -> None:
        self.roles = {**roles, "admin": ALL}
        self._judge = judge
        self._missing = missing
        self._is_fenced = fenced

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Admit a request, on its way through Litestar."""
        service: Service = connection.app.state.service
        connection.scope["state"]["access"] = await self.admit(
            service, connection.scope, connection.path_params
        )

    async def admit(self, service: Service, scope: Scope, path: Mapping[str, Any]) -> Access:
        """Admit a request.

        Args:
            service: Knows the keys, and whose things are.
            scope: What is asked.
            path: The parameters in its path.

        Raises:
            Unauthenticated: It is not known who calls.
            Forbidden: They may not.
            NotFound: There is no such thing.
        """
        told = {name: value for name, value in scope["headers"] if name in _TOLD}
        bearer = _bearer(told.get(b"authorization", b""))
        caller = await service.keyring.caller(bearer, fenced=self._is_fenced)
        if caller.is_anybody:
            refuse_others(told)
            tool = await self._tool_of_anybody(service, caller, scope, path)
            return _open_to(caller, bearer, (scope["client"] or ("",))[0], tool, self._is_fenced)
        reaches = {self.roles[role] for role in _roles_of(caller) if role in self.roles}
        if not reaches:
            takes, has = _in_words(self.roles), _in_words(_roles_of(caller))
            raise Forbidden(f"That takes a key with the role {takes}; yours is {has}.")
        client = f"key {caller.key or caller.registered_by}"
        tool = None
        if self._judge is None:
            tool = caller.tool_id
        elif OWN in reaches:
            is_theirs, tool = await self._judge(service.owners, caller, _thing(scope, path))
            if is_theirs is None and ALL not in reaches:
                # Not left to the handler: it may be there by then, and be somebody else's.
                raise self._missing
            if is_theirs is False and ALL not in reaches:
                raise Forbidden(
                    "That belongs to another key, or is from before there were keys; yours may do it with its"
                    " own only."
                )
            if is_theirs:
                reaches = {OWN}
        if reaches != {OWN}:
            return Access(caller=caller, reach=ALL, bearer=bearer, client=client)
        if tool is not None:
            service.presence.note(caller.beat(tool))
        return Access(
            caller=caller, reach=OWN, bearer=bearer, client=client, tool=tool, fenced=self._is_fenced
        )

    async def _tool_of_anybody(
        self, service: Service, caller: Caller, scope: Scope, path: Mapping[str, Any]
    ) -> str | None:
        """While there are no keys: the tool that asks with its token about itself or its work.

        Its lease is renewed. Where the statement does that, there is nothing to look up.
        """
        if caller.token is None or self._is_fenced or "token" not in self.roles:
            return None
        tool: str | None = caller.token.tool_id
        if self._judge is not None:
            _, tool = await self._judge(service.owners, replace(caller, tool_id=tool), _thing(scope, path))
        if tool == caller.token.tool_id:
            service.presence.note(caller.beat(tool))
            return tool
        return None


class Anyone(Allow):
    """A guard that lets everybody in, without a key."""

    def __init__(self) -> None:
        super().__init__({})

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Let them in."""


anyone = Anyone()


def allow(*, fenced: bool = False, **roles: Reach) -> Allow:
    """Who may make a call; what is the caller's own, its handler sees to."""
    return Allow(roles, fenced=fenced)


def allow_task(**roles: Reach) -> Allow:
    """Who may make a call about a task: its own are those that the key submitted."""
    return Allow(roles, _task, TaskNotFound)


def allow_tool(*, fenced: bool = False, **roles: Reach) -> Allow:
    """Who may make a call about a tool: its own are those that the key registered."""
    return Allow(roles, _tool, ToolNotFound, fenced=fenced)


def allow_work(*, fenced: bool = False, **roles: Reach) -> Allow:
    """Who may make a call about a work: its own are those of the tools that the key registered."""
    return Allow(roles, _work, WorkNotFound, fenced=fenced)


def allow_record(**roles: Reach) -> Allow:
    """Who may make a call about a record: its own are those of the tasks that the key submitted."""
    return Allow(roles, _record, WorkNotFound)


def access_of(request: Request[Any, Any, Any]) -> Access:
    """What the guard has found, for the handler."""
    found: Access = request.scope["state"]["access"]
    return found


async def check_again(service: Service, access: Access, *, at_once: bool = False) -> None:
    """See that who was admitted some time ago would be so now.

    Args:
        service: Knows the keys.
        access: Who was admitted.
        at_once: Whether what was known two seconds ago will not do.

    Raises:
        Unauthenticated: The key was revoked, or the token is void.
    """
    if at_once:
        await service.keyring.know(asyncio.get_running_loop().time())
        if access.caller.token is not None:
            service.owners.forget_tool(access.caller.token.tool_id)
    await service.keyring.caller(access.bearer, fenced=access.fenced and not at_once)


def void_token(service: Service, access: Access) -> VoidToken:
    """Return the error for a token that a statement has refused, and forget that it was good."""
    if access.caller.token is not None:
        service.owners.forget_tool(access.caller.token.tool_id)
    return VoidToken()


async def _task(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    if _ID.match(id_) is None:
        return None, None
    return await owners.task_is(id_, lambda owner: owner.key == caller.key), None


async def _tool(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    if caller.tool_id is None and _ID.match(id_) is None:
        return None, None
    return await has_tool(owners, caller, id_), id_


async def _work(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    tool: str | None = None

    def is_theirs(owner: WorkOwner) -> bool:
        nonlocal tool
        tool = owner.tool_id
        return is_tools(caller, owner)

    found = await _work_is(owners, id_, is_theirs)
    # Where the work has ended, its tool may be another one by now.
    is_there = found and tool is not None and await has_tool(owners, caller, tool)
    return found, tool if is_there else None


async def _record(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    return await _work_is(owners, id_, lambda owner: owner.submitter == caller.key), None


async def _work_is(owners: Owners, id_: str, expected: Callable[[WorkOwner], bool]) -> bool | None:
    try:
        work_id = UUID(id_)
    except ValueError:
        return None
    return await owners.work_is(work_id, expected)


async def has_tool(owners: Owners, caller: Caller, id_: str) -> bool | None:
    """Whether a tool is the one that calls, or one that the key registered; None: there is no such tool."""
    if caller.tool_id is not None:
        return id_ == caller.tool_id
    return await owners.tool_is(id_, lambda owner: owner.key == caller.key)


def is_tools(caller: Caller, owner: WorkOwner) -> bool:
    """Whether a work is that of the tool that calls, or of one that the key registered."""
    if caller.tool_id is None:
        return owner.key == caller.key
    return owner.tool_id == caller.tool_id and owner.key in (None, caller.registered_by)


def _bearer(authorization: bytes) -> str | None:
    scheme, _, given = authorization.partition(b" ")
    return given.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


@lru_cache(_REMEMBERED)
def _open_to(caller: Caller, bearer: str | None, address: str, tool: str | None, fenced: bool) -> Access:
    """What everybody has while there are no keys; made once for each, as it costs memory while they wait."""
    return Access(caller=caller, reach=ALL, bearer=bearer, client=address, tool=tool, fenced=fenced)


def _thing(scope: Scope, path: Mapping[str, Any]) -> str:
    """What the path names: a task, a tool, a work or a record, by its id."""
    named: str = next((path[name] for name in _IN_PATHS if name in path), last_segment(scope))
    return named


def last_segment(scope: Scope) -> str:
    """What a path ends with."""
    return scope["path"].rstrip("/").rpartition("/")[2]


def _roles_of(caller: Caller) -> Collection[str]:
    return ("token",) if caller.tool_id else sorted(caller.roles)


def _in_words(roles: Collection[str]) -> str:
    return " or ".join("a tool's token" if role == "token" else role for role in roles)
