"""Generate the reference page about the command line."""

from collections.abc import Iterator

import click

from broker.cli import main
from tests.support.reference import layout

_WIDTH = 84


def page() -> str:
    """Return the reference page about the command line, as Markdown."""
    return layout.page(
        "Command line",
        "Every command shows this help with `--help`.",
        *_sections(
            main,
            click.Context(main, info_name="broker", terminal_width=_WIDTH, **main.context_settings),
            level=2,
        ),
    )


def _sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    text = command.get_help(context).rstrip()
    yield f"{'#' * level} {context.command_path}"
    yield f"```text\n{text}\n```"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _sections(
                child, click.Context(child, info_name=name, parent=context, terminal_width=_WIDTH), level
            )
