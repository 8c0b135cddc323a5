"""Guards, which define the roles that may make a request. Each handler declares its guard.

A role may make a request about all resources (`ALL`) or only about those of the caller's key (`OWN`). If the
path names a task, tool, work item or record, the guard checks its owner. Handlers of lists and batches use
`Access` to limit them. An admin may do everything.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from enum import Enum
from functools import lru_cache, partial
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
_CACHED = 1_024
_RELEVANT_HEADERS = HEADERS | {b"authorization"}
_PATH_PARAMETERS = ("task_id", "tool_id", "work_id")


class Reach(Enum):
    """The resources that a request of a role may be about."""

    ALL = "all"
    OWN = "own"


ALL, OWN = Reach.ALL, Reach.OWN


class Access(Struct, frozen=True, kw_only=True):
    """The access of an admitted request.

    Args:
        caller: The caller.
        reach: The resources that the request may be about.
        bearer: The key or token of the request. It may become invalid while the request waits.
        client: The client that the limits of waiting requests count: a key with its tools or, without keys,
            an address.
        tool: The tool, if it made the request about itself or its work.
        fenced: Whether the SQL statement of the request refuses an invalid token.
    """

    caller: Caller
    reach: Reach
    bearer: str | None
    client: str
    tool: str | None = None
    fenced: bool = False

    @property
    def key(self) -> str | None:
        """The name of the key that the request is limited to. None: no limit."""
        return self.caller.key if self.reach is OWN else None

    @property
    def acts_as_tool(self) -> bool:
        """True if the caller is the tool itself or an admin."""
        return self.tool is not None or "admin" in self.caller.roles


#: Returns whether a resource belongs to the caller (None if it does not exist), and the tool of the resource.
OwnershipCheck = Callable[[Owners, Caller, str], Awaitable[tuple[bool | None, str | None]]]


class Allow:
    """A guard that admits some roles.

    Args:
        check_owner: Checks the owner of the resource that the path names. If None, the handler checks it or
            limits the request.
        missing: The error if the resource that the path names does not exist.
        fenced: Whether the SQL statement of the request refuses an invalid token and renews the lease.
        roles: The roles that may make the request, with their reach. `token` is a tool with its token.
    """

    def __init__(
        self,
        check_owner: OwnershipCheck | None = None,
        missing: type[NotFound] = NotFound,
        *,
        fenced: bool = False,
        **roles: Reach,
    ) -> None:
        self.roles = {**roles, "admin": ALL}
        self._check_owner = check_owner
        self._missing = missing
        self._is_fenced = fenced

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        """Admit a request that Litestar handles."""
        access = await self.admit(connection.app.state.service, connection.scope, connection.path_params)
        connection.scope["state"]["access"] = access

    async def admit(self, service: Service, scope: Scope, path: Mapping[str, Any]) -> Access:
        """Admit a request with these path parameters, and return its access.

        Raises:
            Unauthenticated: The key or token is missing or invalid.
            Forbidden: The caller may not make the request.
            NotFound: The resource that the path names does not exist.
        """
        headers = {name: value for name, value in scope["headers"] if name in _RELEVANT_HEADERS}
        bearer = _bearer(headers.get(b"authorization", b""))
        caller = await service.keyring.caller(bearer, fenced=self._is_fenced)
        if caller.is_anonymous:
            refuse_others(headers)
            tool = await self._tool_without_keys(service, caller, scope, path)
            return _access_without_keys(caller, bearer, (scope["client"] or ("",))[0], tool, self._is_fenced)
        reaches = {self.roles[role] for role in _roles_of(caller) if role in self.roles}
        if not reaches:
            needed, actual = _in_words(self.roles), _in_words(_roles_of(caller))
            raise Forbidden(f"This request needs a key with the role {needed}. Your key has: {actual}.")
        client = f"key {caller.key or caller.registered_by}"
        tool = None
        if self._check_owner is None:
            tool = caller.tool_id
        elif OWN in reaches:
            is_own, tool = await self._check_owner(service.owners, caller, _named_id(scope, path))
            if is_own is None and ALL not in reaches:
                # Raise the error here. Before the handler runs, another key may create the resource.
                raise self._missing
            if is_own is False and ALL not in reaches:
                raise Forbidden(
                    "This task, tool or work belongs to another key, or was created before keys existed. Your"
                    " key may make this request only for its own tasks and tools."
                )
            if is_own:
                reaches = {OWN}
        if reaches != {OWN}:
            return Access(caller=caller, reach=ALL, bearer=bearer, client=client)
        if tool is not None:
            service.presence.note(caller.beat(tool))
        return Access(
            caller=caller, reach=OWN, bearer=bearer, client=client, tool=tool, fenced=self._is_fenced
        )

    async def _tool_without_keys(
        self, service: Service, caller: Caller, scope: Scope, path: Mapping[str, Any]
    ) -> str | None:
        """Return the tool that made the request with its token while no keys exist, and renew its lease.

        If the SQL statement of the request does so, the method returns None.
        """
        if caller.token is None or self._is_fenced or "token" not in self.roles:
            return None
        tool: str | None = caller.token.tool_id
        if self._check_owner is not None:
            _, tool = await self._check_owner(
                service.owners, replace(caller, tool_id=tool), _named_id(scope, path)
            )
        if tool == caller.token.tool_id:
            service.presence.note(caller.beat(tool))
            return tool
        return None


async def anyone(_: ASGIConnection[Any, Any, Any, Any], __: BaseRouteHandler) -> None:
    """Admit every request. It needs no key."""


def access_of(request: Request[Any, Any, Any]) -> Access:
    """Return the access that the guard granted to the request."""
    access: Access = request.scope["state"]["access"]
    return access


async def check_again(service: Service, access: Access, *, at_once: bool = False) -> None:
    """Check that the key or token of an admitted request is still valid.

    Args:
        service: The service.
        access: The access of the request.
        at_once: Whether to read the keys now. Otherwise keys from the last two seconds suffice.

    Raises:
        Unauthenticated: The key was revoked, or the token is invalid.
    """
    if at_once:
        await service.keyring.load(asyncio.get_running_loop().time())
        if access.caller.token is not None:
            service.owners.forget_tool(access.caller.token.tool_id)
    await service.keyring.caller(access.bearer, fenced=access.fenced and not at_once)


def void_token(service: Service, access: Access) -> VoidToken:
    """Return the error for a token that an SQL statement refused, and remove the token from the cache."""
    if access.caller.token is not None:
        service.owners.forget_tool(access.caller.token.tool_id)
    return VoidToken()


async def _owns_task(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    if _ID.match(id_) is None:
        return None, None
    return await owners.task_is(id_, lambda owner: owner.key == caller.key), None


async def _owns_tool(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    if caller.tool_id is None and _ID.match(id_) is None:
        return None, None
    return await owns_tool(owners, caller, id_), id_


async def _owns_work(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    tool: str | None = None

    def is_own(owner: WorkOwner) -> bool:
        nonlocal tool
        tool = owner.tool_id
        return owns_work(caller, owner)

    owns = await _work_is(owners, id_, is_own)
    # If the work has ended, another key may have registered its tool since.
    owns_tool_now = owns and tool is not None and await owns_tool(owners, caller, tool)
    return owns, tool if owns_tool_now else None


async def _owns_record(owners: Owners, caller: Caller, id_: str) -> tuple[bool | None, str | None]:
    return await _work_is(owners, id_, lambda owner: owner.submitter == caller.key), None


async def _work_is(owners: Owners, id_: str, expected: Callable[[WorkOwner], bool]) -> bool | None:
    try:
        work_id = UUID(id_)
    except ValueError:
        return None
    return await owners.work_is(work_id, expected)


async def owns_tool(owners: Owners, caller: Caller, id_: str) -> bool | None:
    """Return whether a tool is the caller or belongs to the caller's key, or None if it does not exist."""
    if caller.tool_id is not None:
        return id_ == caller.tool_id
    return await owners.tool_is(id_, lambda owner: owner.key == caller.key)


def owns_work(caller: Caller, owner: WorkOwner) -> bool:
    """Return whether work belongs to the calling tool or to a tool of the caller's key."""
    if caller.tool_id is None:
        return owner.key == caller.key
    return owner.tool_id == caller.tool_id and owner.key in (None, caller.registered_by)


allow = Allow
# A key owns the tasks that it submitted, their records, the tools that it registered, and their work.
allow_task = partial(Allow, _owns_task, TaskNotFound)
allow_record = partial(Allow, _owns_record, WorkNotFound)
allow_tool = partial(Allow, _owns_tool, ToolNotFound)
allow_work = partial(Allow, _owns_work, WorkNotFound)


def _bearer(authorization: bytes) -> str | None:
    scheme, _, credentials = authorization.partition(b" ")
    return credentials.strip().decode("latin-1") if scheme.lower() == b"bearer" else None


@lru_cache(_CACHED)
def _access_without_keys(
    caller: Caller, bearer: str | None, address: str, tool: str | None, fenced: bool
) -> Access:
    """Return the access of a request while no keys exist. The cache saves memory for waiting requests."""
    return Access(caller=caller, reach=ALL, bearer=bearer, client=address, tool=tool, fenced=fenced)


def _named_id(scope: Scope, path: Mapping[str, Any]) -> str:
    """Return the id of the task, tool, work item or record that the path names."""
    named: str = next((path[name] for name in _PATH_PARAMETERS if name in path), last_segment(scope))
    return named


def last_segment(scope: Scope) -> str:
    """Return the last segment of the path."""
    return scope["path"].rstrip("/").rpartition("/")[2]


def _roles_of(caller: Caller) -> Collection[str]:
    return ("token",) if caller.tool_id else sorted(caller.roles)


def _in_words(roles: Collection[str]) -> str:
    return " or ".join("a tool's token" if role == "token" else role for role in roles)
