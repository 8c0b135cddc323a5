"""The `broker` command: one module for each subcommand, imported when the subcommand runs."""

from importlib import import_module
from typing import Any

import click

from broker.cli import init_process, standard_streams
from broker.cli.option_types import require_utf8

_COMMANDS = {
    "serve": "Run the service.",
    "tool": "Have any program do work: payload in, result out.",
    "assign": "Pair tasks with tools, as they become available.",
    "submit": "Submit tasks, and wait for their results.",
    "cancel": "Take tasks away.",
    "retry": "Have failed tasks tried again.",
    "explain": "Tell why a task has not run yet.",
    "top": "Watch tools, work and queue, live.",
    "archive": "Export what has ended.",
    "keys": "Make, list and revoke keys.",
    "backup": "Write all that a database holds into a file.",
    "restore": "Read such a file into an empty database.",
    "migrate": "Bring a database's schema up to date.",
    "demo": "Watch a laboratory at work, on real images.",
    "bench": "Measure what the broker does on this machine.",
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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="broker", prog_name="broker")
def main() -> None:
    """Bring work together with the programs that can do it.

    Clients submit tasks that say what they need, tools say what skills they have, an assigner pairs them,
    and each tool gets its work without polling.
    """
