"""The `broker` command: one module for each subcommand, imported when the subcommand runs."""

from importlib import import_module
from typing import Any

import click

from broker.cli import init_process, standard_streams
from broker.cli.option_types import require_utf8

_COMMANDS = {
    "serve": "Run the service.",
    "tool": "Run any program as a tool: payload in, result out.",
    "assign": "Assign tasks to tools as they become available.",
    "submit": "Submit tasks, and wait for their results.",
    "cancel": "Cancel tasks.",
    "retry": "Retry failed tasks.",
    "explain": "Explain why a task has not run yet.",
    "top": "Show tools, work and the queue, live.",
    "archive": "Export the records of ended work.",
    "keys": "Create, list and revoke keys.",
    "backup": "Write a backup of the database to a file.",
    "restore": "Restore a backup into an empty database.",
    "migrate": "Upgrade the schema of your own PostgreSQL.",
    "demo": "Run a demo laboratory on real images.",
    "bench": "Measure the broker on this machine.",
}


class _LazyGroup(click.Group):
    """A group that imports a command when it runs, so that `--help` is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"broker.cli.{cmd_name}"), cmd_name)
        require_utf8(command)
        return command

    def main(self, *args: Any, **kwargs: Any) -> Any:
        init_process.run_in_child()
        with standard_streams.prepared():
            return super().main(*args, **kwargs)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


_EXAMPLES = """
\b
Examples:
  broker serve
  broker submit --help
"""


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.version_option(package_name="broker", prog_name="broker")
def main() -> None:
    """Match tasks with the programs that can do them.

    Clients submit tasks with their needs. Programs register as tools with their skills. An assigner pairs
    them, and each tool receives its work as soon as it is assigned.
    """
