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
Payload      The program reads the payload as JSON from standard input (stdin). With --input file, it reads
             the file that BROKER_INPUT names. In an argument, the tool replaces {NAME} with the field NAME
             of the payload. It inserts a text unchanged, and any other value as JSON. It uses no shell.
Result       The standard output (stdout) is the result. JSON stays JSON, other output becomes a text, and
             no output becomes null. The limit is 31 MiB. Write a larger result to a file, and print its path.
Reports      Each line on standard error (stderr) becomes a report. Lines such as "progress: 0.4 text" and
             "progress: 40% text" also set the progress.
Exit status  With 0 the work succeeds. With any other status it fails, and the last lines on stderr become
             its error. The broker then retries the task, unless --give-up-on lists the status.
Environment  The program gets the environment of this command without BROKER_KEY. It also gets
             BROKER_TASK_ID, BROKER_WORK_ID, BROKER_TOOL_ID, BROKER_ATTEMPT (the first is 1),
             BROKER_NEEDS (JSON), BROKER_URL and BROKER_SCRATCH. This is a scratch folder for this work
             only, which the tool removes when the work ends. TMPDIR is the same folder.
Stopping     If the work is cancelled or times out, the program and its child processes get SIGTERM, and
             SIGKILL after --grace. Child processes that still run when the program ends are killed after
             a second, unless they run in their own session (setsid).

To stop the tool, use SIGTERM or Ctrl-C, or close its terminal. It then accepts no more work, lets its
programs finish, and ends. A second signal kills the programs. If the tool itself is killed, its programs may
continue to run. The next start of the tool ends them. Only one running tool can use an id.

SECONDS may have a unit: 90s, 10m, 2h, 1d. For a complete guide, see /help/guides/connect-a-program/ on the
service.

\b
A tool in a shell script, count.sh:
  #!/bin/sh
  set -e                                      # if a command fails, the work fails
  tr -d '"' > "$BROKER_SCRATCH/words"         # stdin is the payload
  echo "progress: 50% counting" >&2           # each line on stderr is a report
  words=$(wc -w < "$BROKER_SCRATCH/words")
  echo "{\\"words\\": $words}"                  # stdout is the result

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
A program that gets the field "file" of the payload as an argument:
  broker tool --id words --skills '{"can": ["count"]}' -- wc -w {file}
"""


@click.command(epilog=_HELP, context_settings={"allow_interspersed_args": False})
@click.option("--id", "tool_id", required=True, help="The id of the tool. Use the same id after a restart.")
@click.option(
    "--skills",
    required=True,
    type=JsonType(),
    help="What the tool can do: JSON, or @FILE to read JSON from a file.",
)
@click.option(
    "--capacity",
    default=1,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="The maximum number of programs that run at once.",
)
@click.option(
    "--lease",
    default=str(DEFAULT_LEASE_SECONDS),
    show_default=True,
    type=DurationType(5, 86_400),
    help="If the tool sends no request for this long, its lease expires, and its tasks become available to"
    " other tools. At least 5.",
)
@click.option(
    "--input",
    default="stdin",
    show_default=True,
    type=click.Choice(["stdin", "file"]),
    help="Pass the payload on standard input (stdin), or in the file that BROKER_INPUT names.",
)
@click.option(
    "--give-up-on",
    multiple=True,
    type=click.IntRange(1, 255),
    metavar="STATUS",
    help="An exit status after which the broker does not retry the task. Repeat the option for several.",
)
@click.option(
    "--grace",
    "grace_seconds",
    default="10",
    show_default=True,
    type=DurationType(),
    help="How long a program may take to end after SIGTERM, before the tool kills it.",
)
@click.option(
    "--on-stop",
    default="finish",
    show_default=True,
    type=click.Choice(["finish", "release"]),
    help="When the tool stops, let its programs finish, or end them and release their work. Released work"
    " does not count as an attempt.",
)
@click.option(
    "--chdir",
    "in_scratch",
    is_flag=True,
    help="Run programs in their scratch folders, not in the current folder. A relative path of PROGRAM still"
    " starts from the current folder.",
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="The parent of all scratch folders.  [default: broker-UID in the temporary folder]",
)
@click.option(
    "--keep",
    default="never",
    show_default=True,
    type=click.Choice(["never", "failed", "always"]),
    help="Which scratch folders to keep: none, those of work that did not succeed, or all.",
)
@click.option("--quiet", is_flag=True, help="Do not copy the reports of the programs to standard error.")
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
    """Run any program as a tool: payload in, result out.

    The tool starts PROGRAM for each work item. The program does not need to know the broker.
    """
    if not re.match(ID_PATTERN, tool_id):
        raise click.BadParameter(
            "An id must have 1 to 128 characters of A-Z a-z 0-9 . _ ~ : - and begin with a letter or a"
            " digit.",
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
    """Let the runner do the tool's work until a signal stops the process."""

    def end_at_once() -> None:
        runner.kill()
        writer.finish(_LAST_LINES_SECONDS)

    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, _stop_once)
    worker.handler(runner.do)
    try:
        signals.run_until_signal(worker.work(), at_once=end_at_once)
    finally:
        runner.kill()


def _stop_once(*_: object) -> None:
    """Stop when the terminal is closed. Ignore the second SIGHUP: the shell and the kernel both send one."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
