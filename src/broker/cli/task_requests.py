"""Send a request for each of several tasks, for `broker cancel` and `broker retry`."""

from collections.abc import Awaitable, Callable, Iterable

import click

from broker.client import AsyncBroker, AsyncHandle, ProblemError
from broker.client.errors import explained

_ABOUT_ONE_TASK = ("task_not_found", "task_ended")
_PATIENCE_SECONDS = 5.0


async def request_for_each_task(
    url: str | None, ids: Iterable[str], request: Callable[[AsyncHandle], Awaitable[object]]
) -> None:
    """Send a request for each task. Report the refused ones only after all others were sent."""
    refusals = []
    async with AsyncBroker(url, patience_seconds=_PATIENCE_SECONDS) as broker:
        for id_ in ids:
            try:
                await request(broker.handle(id_))
            except ProblemError as error:
                if error.code not in _ABOUT_ONE_TASK:
                    raise
                refusals.append(f"{id_}: {explained(error)}")
    if refusals:
        raise click.ClickException("\n".join(refusals))
