"""Commands that call a broker: where it is, and errors that say what to do."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import httpx

from broker.client.addresses import DEFAULT_URL, url_of_broker
from broker.client.errors import ProblemError, SettingError, explained

Command = TypeVar("Command", bound=Callable[..., Any])


def calls_a_broker(command: Command) -> Command:
    """Give a command the option `--url`, and have it end with a clear error where the broker does not help.

    The command is called with `url`: what was given, or None, for the client to find it. The key is read from
    `BROKER_KEY` by the client; an option would show it to whoever lists the processes.
    """

    @functools.wraps(command)
    def called(*args: Any, url: str | None, **kwargs: Any) -> Any:
        with clear_call_errors(url):
            return command(*args, url=url, **kwargs)

    option = click.option(
        "--url",
        envvar="BROKER_URL",
        show_envvar=True,
        help=f"Where the broker is; its key, if it needs one, is in BROKER_KEY.  [default: {DEFAULT_URL}]",
    )
    return option(called)  # type: ignore[return-value]


@contextlib.contextmanager
def clear_call_errors(url: str | None) -> Iterator[None]:
    """End the command with a clear message if the broker refuses a request or does not respond.

    Raises:
        click.ClickException: It does so.
    """
    try:
        yield
    except ProblemError as error:
        if error.code == "not_found":
            raise click.ClickException(
                f"The broker has no path {error.problem.instance!r}. Check its URL, {url_of_broker(url)}:"
                " --url or BROKER_URL must end where the paths of the API, such as /v1/tasks, begin."
            ) from error
        raise click.ClickException(explained(error)) from error
    except SettingError as error:
        raise click.ClickException(str(error)) from error
    except httpx.TransportError as error:
        raise click.ClickException(
            f"No broker answers at {url_of_broker(url)}: {error or type(error).__name__}. Is it running there"
            " (`broker serve`)? --url or BROKER_URL says where it is."
        ) from error
