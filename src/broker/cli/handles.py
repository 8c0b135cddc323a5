"""Doing something with each of some tasks, by their ids."""

from collections.abc import Awaitable, Callable, Iterable

import click

from broker.client import AsyncBroker, AsyncHandle, ProblemError
from broker.client.errors import explained

_ABOUT_ONE_TASK = ("task_not_found", "task_ended")
_PATIENCE_SECONDS = 5.0


async def each(url: str | None, tasks: Iterable[str], do: Callable[[AsyncHandle], Awaitable[object]]) -> None:
    """Do something with each of them; one that it cannot be done with keeps no other from it.

    Args:
        url: Where the broker is.
        tasks: Their ids.
        do: What is done.

    Raises:
        click.ClickException: With some of them it could not be done; the message says why.
    """
    refused = []
    async with AsyncBroker(url, patience_seconds=_PATIENCE_SECONDS) as broker:
        for id_ in tasks:
            try:
                await do(broker.handle(id_))
            except ProblemError as error:
                if error.code not in _ABOUT_ONE_TASK:
                    raise
                refused.append(f"{id_}: {explained(error)}")
    if refused:
        raise click.ClickException("\n".join(refused))
