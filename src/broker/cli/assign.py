"""`broker assign`: assign tasks to tools as they become available."""

import asyncio
import contextlib
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import click
import structlog

from broker.cli.url_option import with_url_option
from broker.client import Assigner, signals
from broker.client.addresses import url_of_broker
from broker.matching.mismatch import shown
from broker.matching.strategies import NAMES
from broker.schemas.candidates import AssignedPair
from broker.telemetry import logs
from broker.texts import one_line, shorten

log = structlog.get_logger(__name__)

_COUNT_SECONDS = 5.0
_UNMATCHED_INTERVAL_SECONDS = 600.0
_MOST_UNMATCHED = 5
# Skills that no task has needed for this long are logged.
_UNASKED_SINCE = timedelta(minutes=1)

_EXAMPLES = """
\b
Values of --match:
  contains  The needs must be a part of the skills. The needs {"can": "print"}
            match the skills {"can": ["print", "scan"], "gpu": 2}.
  schema    The needs are a JSON Schema (2020-12) that the skills must satisfy:
            {"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}}
            Without "required", a tool without a gpu also satisfies it.
  lab:fits  The function `fits` of the module `lab` must return true. The module
            is lab.py in the current folder, or an installed module.

\b
An example of lab.py, for --match lab:fits --rank lab:speed:
  from broker.client import MismatchError

\b
  def fits(skills, needs):
      if skills["gpu"] < needs["gpu"]:
          raise MismatchError(f"wants {needs['gpu']} GPUs, has {skills['gpu']}")
      return True

\b
  def speed(skills, needs):
      return skills["clock"]

The functions receive skills and needs as Python values. The assigner caches the result for each pair of
skills and needs, so the result must depend on nothing else. If a function raises an exception, the tool does
not match, and the assigner logs the exception. The text of a MismatchError becomes a part of the task's
remark.

\b
Examples:
  broker assign
  broker assign --match schema --aging 600
  broker assign --match lab:fits --rank lab:speed --url https://broker.lab
"""


class _Function(click.ParamType[Any]):
    """A function, written as `MODULE:FUNCTION`, or one of some names."""

    name = "MODULE:FUNCTION"

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._names = names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in self._names:
            return value
        module, _, path = value.partition(":")
        if not module or not path:
            names = "".join(f"{name}, " for name in self._names)
            self.fail(f"{value!r} must be {names and f'{names}or '}a function: MODULE:FUNCTION.", param, ctx)
        return _import(module, path)


class _Aging(click.ParamType[Any]):
    """A number of seconds, or `off`."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value == "off":
            return None
        with contextlib.suppress(ValueError):
            if 0 < (seconds := float(value)) < float("inf"):
                return seconds
        return self.fail(f"{value!r} must be a number of seconds above 0, or `off`.", param, ctx)


@click.command(epilog=_EXAMPLES)
@click.option(
    "--match",
    default="contains",
    show_default=True,
    type=_Function(NAMES),
    metavar="|".join((*NAMES, _Function.name)),
    help="How the assigner decides whether a tool can do a task. See below.",
)
@click.option(
    "--rank",
    type=_Function(),
    metavar=_Function.name,
    help="A function that returns the rank of a tool as a number. Among the tools that can do a task, the"
    " tool with the highest rank gets it.  [default: all ranks are equal]",
)
@click.option(
    "--aging",
    "aging_seconds",
    default="3600",
    show_default=True,
    type=_Aging(),
    metavar="SECONDS|off",
    help="For every SECONDS that a task waits, the assigner raises its priority by one, so that no task waits"
    " forever. With `off`, a higher priority always comes first.",
)
@click.option(
    "--no-remarks", is_flag=True, help="Do not write remarks. A remark explains why a task still waits."
)
@with_url_option
def assign(
    *,
    match: Callable[[Any, Any], bool] | str,
    rank: Callable[[Any, Any], float] | None,
    aging_seconds: float | None,
    no_remarks: bool,
    url: str | None,
) -> None:
    """Assign tasks to tools as they become available.

    Tasks with a higher priority come first, then older tasks. Each task gets the tool with the highest rank.
    If several tools have this rank, the task gets the one that the fewest other tasks can use.

    If no tool can do a task, the assigner writes a remark after some seconds. The remark says what the task
    needs, and what the closest match has. `broker explain` shows it.

    Every ten minutes and when it stops, the assigner logs needs and skills that may contain a mistake: skills
    that no task needs, and needs whose tasks still wait while many newer tasks were assigned.

    The command runs until Ctrl-C or SIGTERM. You can run several assigners at once. If the broker has keys,
    set BROKER_KEY to a key with the role assigner.
    """
    tally = _Tally()
    try:
        assigner = Assigner(
            match,
            rank=rank,
            aging_seconds=aging_seconds,
            remarks=not no_remarks,
            on_assigned=tally.count,
            url=url,
        )
    except TypeError as error:
        raise click.UsageError(f"{error}.") from error
    logs.configure()
    log.info(
        "assigner configured",
        broker=url_of_broker(url),
        match=_name_of(match),
        rank=_name_of(rank),
        aging_seconds=aging_seconds,
    )
    signals.run_until_signal(_assign(assigner, tally))


async def _assign(assigner: Assigner, tally: "_Tally") -> None:
    logging = [asyncio.create_task(tally.log()), asyncio.create_task(_log_unmatched_regularly(assigner))]
    try:
        await assigner.assign()
    finally:
        for task in logging:
            task.cancel()
        tally.log_now()
        _log_unmatched(assigner)


class _Tally:
    """Counts assigned tasks, and logs the counts every few seconds."""

    def __init__(self) -> None:
        self._tasks = 0
        self._tools: set[str] = set()
        self._some = asyncio.Event()

    def count(self, pair: AssignedPair) -> None:
        self._tasks += 1
        self._tools.add(pair.tool_id)
        self._some.set()

    async def log(self) -> None:
        while True:
            await self._some.wait()
            self.log_now()
            await asyncio.sleep(_COUNT_SECONDS)

    def log_now(self) -> None:
        if self._tasks:
            log.info("assigned", tasks=self._tasks, tools=len(self._tools))
        self._tasks = 0
        self._tools.clear()
        self._some.clear()


async def _log_unmatched_regularly(assigner: Assigner) -> None:
    while True:
        await asyncio.sleep(_UNMATCHED_INTERVAL_SECONDS)
        _log_unmatched(assigner)


def _log_unmatched(assigner: Assigner) -> None:
    unmatched = assigner.unmatched()
    for needs in unmatched.needs[:_MOST_UNMATCHED]:
        log.info(
            "needs overtaken",
            needs=shown(needs.needs),
            waiting=needs.waiting,
            oldest=needs.oldest,
            since=f"{needs.since:%Y-%m-%dT%H:%M:%SZ}",
            passed_by=needs.passed_by,
        )
    unasked = [skills for skills in unmatched.skills if datetime.now(UTC) - skills.since > _UNASKED_SINCE]
    for skills in unasked[:_MOST_UNMATCHED]:
        log.info(
            "skills not needed",
            skills=shown(skills.skills),
            tools=skills.tools[:_MOST_UNMATCHED],
            since=f"{skills.since:%Y-%m-%dT%H:%M:%SZ}",
        )


def _import(module: str, path: str) -> Any:
    """Import a function from a module in this folder, or from an installed one."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise click.BadParameter(_import_failure(module, error)) from error
        raise click.BadParameter(
            f"There is no module {module!r} in {Path.cwd()}, and none of this name is installed."
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise click.BadParameter(_import_failure(module, error)) from error
    try:
        function = attrgetter(path)(loaded)
    except AttributeError as error:
        raise click.BadParameter(f"Module {module!r} has no {path!r}.") from error
    if not callable(function):
        raise click.BadParameter(
            f"{module}:{path} is not a function, but {shorten(one_line(repr(function)), 60)}."
        )
    return function


def _import_failure(module: str, error: BaseException) -> str:
    """Return the message for a module that cannot be imported, with the line that failed."""
    if isinstance(error, SyntaxError):
        file, line, message = error.filename, error.lineno, error.msg
    else:
        [*_, last] = traceback.extract_tb(error.__traceback__)
        file, line, message = last.filename, last.lineno, str(error)
    return f"Module {module!r} cannot be imported: {type(error).__name__}: {message} ({file}, line {line})"


def _name_of(function: object) -> str | None:
    if function is None or isinstance(function, str):
        return function
    return f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"
