"""`broker tool`: run any program as a tool."""

import logging
import re
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
from msgspec import Raw

from broker.cli.option_types import DurationType, JsonType
from broker.cli.url_option import with_url_option
from broker.client import Tool, signals
from broker.client.addresses import url_of_broker
from broker.programs import command as commands
from broker.programs.background_writer import BackgroundWriter
from broker.programs.errors import CannotRunError
from broker.programs.folders import ToolFolder
from broker.programs.runner import Options, Runner
from broker.schemas.limits import DEFAULT_LEASE_SECONDS
from broker.schemas.values import ID_PATTERN
from broker.texts import replace_unprintable

# How long the last reports and the outcome of a killed program may take to reach the broker.
_LAST_REPORTS_SECONDS = 5.0
# How long to wait for a reader of standard error.
_LAST_LINES_SECONDS = 1.0

_HELP = """
\b
A tool in a shell script, count.sh:
  #!/bin/sh
  set -e                                      # what goes wrong, fails the work
  tr -d '"' > "$BROKER_SCRATCH/words"         # the payload comes on stdin
  echo "progress: 50% counting" >&2           # what is written to stderr, is reported
  words=$(wc -w < "$BROKER_SCRATCH/words")
  echo "{\\"words\\": $words}"                  # what is written to stdout, is the result

\b
  broker tool --id counter --skills '{"can": ["count"]}' -- ./count.sh

\b
The same in Python, count.py:
  import json, sys
  words = json.load(sys.stdin).split()
  for done, word in enumerate(words):
      print(f"progress: {done / len(words)} {word}", file=sys.stderr)
  json.dump({"words": len(words)}, sys.stdout)

\b
  broker tool --id counter --skills '{"can": ["count"]}' -- python count.py

\b
A program that takes the name of a file as an argument, which the payload has as "file":
  broker tool --id words --skills '{"can": ["count"]}' -- wc -w {file}

\b
Payload      as JSON on stdin; with --input file in the file that BROKER_INPUT names. {NAME} in an argument
             is the payload's field NAME: a text as it is, anything else as JSON. No shell comes between.
Result       what it writes to stdout: JSON as it is, anything else as a text, nothing as null. 31 MiB at
             most: have it write a file of what is larger, and print the file's path.
Reports      each line that it writes to stderr. "progress: 0.4 text" and "progress: 40% text" say how much
             is done.
Exit status  0: it has succeeded. Any other: it has failed, and its last lines on stderr say why. The task
             is tried again as often as it says, unless the status is one of --give-up-on.
Environment  that of the tool without BROKER_KEY, and BROKER_TASK_ID, BROKER_WORK_ID, BROKER_TOOL_ID,
             BROKER_ATTEMPT (the first is 1), BROKER_NEEDS (JSON), BROKER_URL, and BROKER_SCRATCH (TMPDIR,
             too): a folder for this work alone, removed when it has ended.
Stopping     When its work is cancelled or takes too long, a program and all it has started get SIGTERM,
             and after --grace SIGKILL. What it has left running when it ends has a second; then it is
             killed, unless it has made a session of its own (setsid).

Told to stop (SIGTERM, Ctrl-C, its terminal is closed), the tool takes no more work, lets its programs
finish, and ends; a second signal kills them. When it was killed itself, what it has left running is ended
as soon as it is started again. An id belongs to one running tool.

SECONDS may have a unit: 90s, 10m, 2h, 1d.
"""


@click.command(epilog=_HELP, context_settings={"allow_interspersed_args": False})
@click.option("--id", "tool_id", required=True, help="What the tool is called; the same after a restart.")
@click.option(
    "--skills",
    required=True,
    type=JsonType(),
    help="What it can do: JSON that the assigner understands, or @FILE.",
)
@click.option(
    "--capacity",
    default=1,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="How many programs run at once.",
)
@click.option(
    "--lease",
    default=str(DEFAULT_LEASE_SECONDS),
    show_default=True,
    type=DurationType(5, 86_400),
    help="Not heard of for so long, the tool is taken for dead, and its work given to others: 5 or more.",
)
@click.option(
    "--input",
    default="stdin",
    show_default=True,
    type=click.Choice(["stdin", "file"]),
    help="Whether the payload comes on stdin, or in the file that BROKER_INPUT names.",
)
@click.option(
    "--give-up-on",
    multiple=True,
    type=click.IntRange(1, 255),
    metavar="STATUS",
    help="An exit status after which no other attempt is worth it; may be given repeatedly.",
)
@click.option(
    "--grace",
    "grace_seconds",
    default="10",
    show_default=True,
    type=DurationType(),
    help="How long a program has to end after SIGTERM; then it is killed.",
)
@click.option(
    "--on-stop",
    default="finish",
    show_default=True,
    type=click.Choice(["finish", "release"]),
    help="What becomes of programs when the tool is told to stop: they finish; or they are ended, and their"
    " work is given back for another attempt, which counts as none.",
)
@click.option(
    "--chdir",
    "in_scratch",
    is_flag=True,
    help="Run programs in their scratch folder, not in this one; PROGRAM itself is found from here.",
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for scratch folders.  [default: one of this user's in the temporary folder]",
)
@click.option(
    "--keep",
    default="never",
    show_default=True,
    type=click.Choice(["never", "failed", "always"]),
    help="Which scratch folders are kept, to look into: those of work that did not succeed, or all.",
)
@click.option("--quiet", is_flag=True, help="Do not write the programs' reports to stderr, too.")
@click.argument(
    "command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGUMENT]..."
)
@with_url_option
def tool(
    url: str | None,
    tool_id: str,
    skills: Raw,
    capacity: int,
    lease: float,
    on_stop: Literal["finish", "release"],
    scratch: Path | None,
    quiet: bool,
    command: tuple[str, ...],
    **options: Any,
) -> None:
    """Have any program do work: payload in, result out.

    The program is started for each piece of work, and need not know of the broker.
    """
    if not re.match(ID_PATTERN, tool_id):
        raise click.BadParameter(
            "An id has 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begins with a letter or a digit.",
            param_hint="'--id'",
        )
    runner_options = Options(url=url_of_broker(url), **options)
    worker = Tool(
        tool_id,
        skills,
        capacity=capacity,
        lease_seconds=lease,
        on_stop=on_stop,
        grace_seconds=runner_options.grace_seconds + _LAST_REPORTS_SECONDS,
        url=url,
    )
    writer = BackgroundWriter(sys.stderr, partial(replace_unprintable, keep="\n\t"))
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=writer)
    logging.getLogger("broker").setLevel(logging.INFO)
    try:
        resolved = commands.resolve(command)
        folder = ToolFolder(tool_id, scratch)
        with folder.locked():
            folder.clean(runner_options.grace_seconds)
            runner = Runner(resolved, folder, runner_options, echo=None if quiet else writer.write)
            _work(worker, runner, writer)
    except CannotRunError as error:
        raise click.ClickException(str(error)) from error
    finally:
        writer.finish(_LAST_LINES_SECONDS)


def _work(worker: Tool, runner: Runner, writer: BackgroundWriter) -> None:
    """Have the runner do the tool's work until the process is asked to stop."""

    def end_at_once() -> None:
        runner.kill()
        writer.finish(_LAST_LINES_SECONDS)

    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not so with nohup
        signal.signal(signal.SIGHUP, _stop_once)
    worker.handler(runner.do)
    try:
        signals.run_until_signal(worker.work(), at_once=end_at_once)
    finally:
        runner.kill()


def _stop_once(*_: object) -> None:
    """Stop when the terminal is closed. Both the shell and the kernel send SIGHUP: ignore the second one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
