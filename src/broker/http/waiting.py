"""Keep requests waiting until there is something to return, they time out, or the client disconnects."""

# Without this import, each request would evaluate the annotations of the inner functions.
from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from litestar import Request
from litestar.types import Scope

from broker.http.guards import Access, check_again, void_token
from broker.schemas.limits import LONGEST_WAIT_SECONDS
from broker.schemas.work import Work
from broker.service import Service
from broker.store import leases, work
from broker.store.assignment import Assigned
from broker.store.work import AssignedWork
from broker.wake.departure import Departure
from broker.wake.listener import TOOL
from broker.wake.longpoll import Seen, long_poll

State = TypeVar("State")


async def wait_for(
    request: Request[Any, Any, Any],
    service: Service,
    access: Access,
    read_state: Callable[[], Awaitable[State]],
    *,
    until: Callable[[State], bool],
    wait: float | None,
    topic: str,
    key: str = "",
    read_last: bool = True,
    tool: str | None = None,
    accept: Callable[[Any], Awaitable[State]] | None = None,
    seen: Seen[State] | None = None,
) -> State:
    """Wait until there is something to return, or the wait times out. Return the last state.

    Meanwhile the broker renews the lease of the waiting `tool`. After the wait, the function checks the
    caller's access again. See `long_poll` for the other arguments.

    Raises:
        TooManyRequests: This client has too many waiting requests.
        Overloaded: All clients together have too many waiting requests.
        Unauthenticated: The key was revoked, or the token is invalid.
    """
    seconds = wait_seconds(request, wait)
    beat = None if tool is None else access.caller.beat(tool)
    if beat is not None:
        service.presence.note(beat)
    if not seconds:
        return await read_state()
    service.wait_limits.acquire(access.client)
    if beat is not None:
        service.presence.arrive(beat)
    try:
        state = await long_poll(
            service.waiters,
            read_state,
            until=until,
            seconds=seconds,
            topic=topic,
            key=key,
            read_last=read_last,
            departure=departure_of(request.scope),
            accept=accept,
            seen=seen,
        )
    finally:
        service.wait_limits.release(access.client)
        if beat is not None:
            service.presence.leave(beat)
    await check_again(service, access)
    return state


def departure_of(scope: Scope) -> Departure:
    """Return the departure of a request's client, which `broker.server.connections` records."""
    departure: Departure = scope["state"]["departure"]
    return departure


async def next_work(
    request: Request[Any, Any, Any],
    service: Service,
    access: Access,
    tool_id: str,
    wait: float | None,
    *,
    idle_since: int | None = None,
) -> list[Work] | None:
    """Wait for work that a tool has not started yet, and return it. None if the tool does not exist.

    If another statement has already read that the tool has no work, `idle_since` is a moment before it.
    """
    has_looked = idle_since is not None
    beat = access.caller.beat(tool_id)

    async def read_state() -> list[Work] | None:
        return await judge(await service.store.read_one(work.assigned_to, tool_id))

    async def judge(assigned: AssignedWork | None) -> list[Work] | None:
        nonlocal has_looked
        if beat.token_hash and (assigned is None or assigned.token_hash != beat.token_hash):
            raise void_token(service, access)
        if has_looked and not (assigned and assigned.items):
            # An invalid token or a revoked key also wakes the request.
            await check_again(service, access, at_once=True)
        if has_looked and assigned and assigned.since_seconds is not None:
            service.metrics.dispatched(assigned.since_seconds)
        has_looked = True
        if assigned is None:
            return None
        if access.acts_as_tool:
            if assigned.offline:
                # A request of an offline tool brings it back.
                await service.store.one(leases.keep, beat)
            service.presence.plan_renewal(beat, assigned.lease_seconds)
        return assigned.items

    return await wait_for(
        request,
        service,
        access,
        read_state,
        until=_is_final,
        wait=wait,
        topic=TOOL,
        key=tool_id,
        read_last=False,
        tool=tool_id if access.acts_as_tool else None,
        accept=judge,
        seen=None if idle_since is None else Seen([], idle_since),
    )


def hand_over(service: Service, results: Iterable[Assigned]) -> None:
    """Hand new work over to the requests of this process that wait for it, after the commit."""
    by_tool: dict[str, AssignedWork] = {}
    now = time.monotonic()
    for _, _, new, tool in results:
        if new is None or tool is None:
            continue
        if (assigned := by_tool.get(new.tool_id)) is None:
            # An offline tool gets no work.
            assigned = by_tool[new.tool_id] = AssignedWork(
                [], False, tool.token_hash, tool.lease_seconds, now - tool.began_at
            )
        assigned.items.append(new)
    for tool_id, assigned in by_tool.items():
        service.waiters.hand_over(TOOL, tool_id, assigned)


# An inner function would need memory for each of ten thousand waiting requests.
def _is_final(items: list[Work] | None) -> bool:
    return items is None or bool(items)


def prefers_minimal(request: Request[Any, Any, Any]) -> bool:
    """Return whether the request has `Prefer: return=minimal`."""
    preferences = request.headers.get("prefer", "").lower().split(",")
    return "return=minimal" in (preference.replace(" ", "") for preference in preferences)


def wait_seconds(request: Request[Any, Any, Any], wait: float | None) -> float:
    """Return the seconds a request may wait: `?wait=`, or `Prefer: wait=` (RFC 7240) within the limits."""
    if wait is not None:
        return wait
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            return _clamp(value.split(";")[0].strip(' "'))
    return 0.0


def _clamp(text: str) -> float:
    """Return a preferred wait within the limits. 0 if it is not a finite number."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else 0.0
