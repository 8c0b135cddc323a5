"""Requests that wait: how long, for what, and until their client is gone."""

# Not only for style: the functions inside would each have their annotations made anew, for every request.
from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from litestar import Request

from broker.http.guards import Access, check_again, void_token
from broker.schemas.limits import LONGEST_WAIT_SECONDS
from broker.schemas.work import Work
from broker.service import Service
from broker.store import leases, work
from broker.wake.listener import TOOL

Answer = TypeVar("Answer")


async def park(
    request: Request[Any, Any, Any],
    service: Service,
    access: Access,
    look: Callable[[], Awaitable[Answer]],
    *,
    until: Callable[[Answer], bool],
    wait: float | None,
    topic: str,
    key: str = "",
    look_last: bool = True,
    tool: str | None = None,
) -> Answer:
    """Answer as soon as there is something to say, else when the time is up; see `LongPoll.wait`.

    A tool that waits is there meanwhile. Whoever has waited has to be welcome still.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    seconds = wait_seconds(request, wait)
    beat = None if tool is None else access.caller.beat(tool)
    if beat is not None:
        service.presence.hear(beat)
    if not seconds:
        return await look()
    service.wait_limits.acquire(access.client)
    if beat is not None:
        service.presence.arrive(beat)
    try:
        answer = await service.poll.wait(
            look, until=until, seconds=seconds, topic=topic, key=key, look_last=look_last, gone=gone
        )
    finally:
        service.wait_limits.release(access.client)
        if beat is not None:
            service.presence.leave(beat)
    await check_again(service, access)
    return answer


async def next_work(
    request: Request[Any, Any, Any], service: Service, access: Access, tool_id: str, wait: float | None
) -> list[Work] | None:
    """The work that a tool has not started yet, as soon as there is some; None: there is no such tool."""
    has_looked = False
    beat = access.caller.beat(tool_id)

    async def look() -> list[Work] | None:
        nonlocal has_looked
        found = await service.store.read_one(work.assigned_to, tool_id)
        if beat.token_hash and (found is None or found.token_hash != beat.token_hash):
            raise void_token(service, access)
        if has_looked and not (found and found.items):
            # What wakes it may be that its token is void, or its key was revoked.
            await check_again(service, access, at_once=True)
        if has_looked and found and found.since_seconds is not None:
            service.metrics.dispatched(found.since_seconds)
        has_looked = True
        if found is None:
            return None
        if access.acts_as_tool:
            if found.offline:
                # It is back: that it asks says so.
                await service.store.one(leases.keep, beat)
            service.presence.expect(beat, found.lease_seconds)
        return found.items

    return await park(
        request,
        service,
        access,
        look,
        until=_some,
        wait=wait,
        topic=TOOL,
        key=tool_id,
        look_last=False,
        tool=tool_id if access.acts_as_tool else None,
    )


# No function inside: ten thousand that wait would have one each.
def _some(found: list[Work] | None) -> bool:
    return found is None or bool(found)


def prefers_minimal(request: Request[Any, Any, Any]) -> bool:
    """Return whether the client asks for no more than it needs to watch: `Prefer: return=minimal`."""
    preferences = request.headers.get("prefer", "").lower().split(",")
    return "return=minimal" in (preference.replace(" ", "") for preference in preferences)


def wait_seconds(request: Request[Any, Any, Any], wait: float | None) -> float:
    """How long a request may wait: `?wait=`, else `Prefer: wait=` (RFC 7240) cut to the range."""
    if wait is not None:
        return wait
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = preference.partition("=")
        if name.strip().lower() == "wait":
            return _cut(value.split(";")[0].strip(' "'))
    return 0.0


def _cut(seconds: str) -> float:
    """A preferred wait, cut to the range; one that means nothing is none."""
    try:
        wanted = float(seconds)
    except ValueError:
        return 0.0
    return min(max(wanted, 0.0), LONGEST_WAIT_SECONDS) if math.isfinite(wanted) else 0.0
