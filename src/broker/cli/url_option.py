"""The option `--url` of commands that send requests to a broker, and their error messages."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import httpx

from broker.client.addresses import DEFAULT_URL, url_of_broker
from broker.client.errors import ProblemError, SettingError, explained

Command = TypeVar("Command", bound=Callable[..., Any])


def with_url_option(command: Command) -> Command:
    """Add the option `--url` to a command, and turn errors of its requests into error messages.

    The command gets `url`: the value of the option, or None if the client must find the URL itself. The
    client reads the key from `BROKER_KEY`. Everybody who lists the processes could read it in an option.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, url: str | None, **kwargs: Any) -> Any:
        with clear_request_errors(url):
            return command(*args, url=url, **kwargs)

    option = click.option(
        "--url",
        envvar="BROKER_URL",
        show_envvar=True,
        help=f"The URL of the broker. If it has keys, set BROKER_KEY to your key.  [default: {DEFAULT_URL}]",
    )
    return option(wrapped)  # type: ignore[return-value]


@contextlib.contextmanager
def clear_request_errors(url: str | None) -> Iterator[None]:
    """End the command with an error message if the broker refuses a request or does not respond."""
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
            f"No broker responds at {url_of_broker(url)}: {error or type(error).__name__}. Start it with"
            " `broker serve`, or set --url or BROKER_URL to its URL."
        ) from error
