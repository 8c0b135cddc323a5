"""Run a program for each job of a tool."""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from msgspec import Raw, Struct

from broker.client import AsyncJob, FailedError, tracing
from broker.programs import command as commands
from broker.programs.errors import CannotRunError
from broker.programs.folders import ToolFolder, WorkFolder
from broker.programs.outcome import Output, failure
from broker.programs.placeholders import Template
from broker.programs.process import Process
from broker.programs.reports import Reports

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# How long to retry if a program cannot start. Somebody may be replacing it, or the disk may be full.
_PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS = 0.5


class Options(Struct, frozen=True, kw_only=True):
    """The options of a program run.

    Args:
        url: The URL of the broker.
        input: Whether the program reads the payload from stdin, or from the file named by BROKER_INPUT.
        in_scratch: Whether it runs in the scratch folder, not in the current folder.
        keep: Which scratch folders to keep: none, those of jobs that did not succeed, or all.
        give_up_on: The exit statuses after which the task is not retried.
        grace_seconds: How long it may take to end after SIGTERM before it gets SIGKILL.
    """

    url: str
    input: Literal["stdin", "file"] = "stdin"
    in_scratch: bool = False
    keep: Literal["never", "failed", "always"] = "never"
    give_up_on: tuple[int, ...] = ()
    grace_seconds: float = 10.0


class Runner:
    """Runs a program for each job.

    Args:
        command: The absolute path of the program and its arguments, which may contain placeholders.
        echo: See `Reports`.

    Raises:
        CannotRunError: A payload could decide which program runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: ToolFolder,
        options: Options,
        *,
        echo: Callable[[str], object] | None = None,
    ) -> None:
        self._command = Template(command)
        for placeholder in self._command.unfilled[:1]:
            log.warning(
                "%s in a program text is not replaced. Pass it as an argument: sh -c 'wc \"$1\"' sh %s",
                placeholder,
                placeholder,
            )
        self._folder = folder
        self._options = options
        self._echo = echo
        self._running: set[Process] = set()

    def kill(self) -> None:
        """Kill all running programs and their child processes."""
        for process in self._running:
            process.kill()

    async def do(self, job: AsyncJob) -> Any:
        """Run the program for a job, and return its output.

        If this is cancelled, it asks the program to end, and waits for its end.

        Raises:
            FailedError: The program could not start, or failed.
        """
        started_at, succeeded = time.monotonic(), False
        folder = await _retry("Cannot create a scratch folder:", lambda: self._make_folder(job))
        try:
            result = await self._run(job, folder)
            succeeded = True
        except FailedError as error:
            log.warning("%s: %s", job.task_id, str(error).partition("\n")[0])
            if self._options.keep == "never":
                raise
            where = f"The scratch folder is kept on {socket.gethostname()}: {folder.kept}"
            raise FailedError(f"{error}\n{where}", retry=error.retry) from error
        finally:
            await asyncio.to_thread(self._put_away, folder, succeeded)
        log.info("%s: succeeded in %.1f s", job.task_id, time.monotonic() - started_at)
        return result

    async def _make_folder(self, job: AsyncJob) -> WorkFolder:
        return self._folder.for_work(job.id, job.payload_json)

    def _put_away(self, folder: WorkFolder, succeeded: bool) -> None:
        keeps = self._options.keep == "always" or (self._options.keep == "failed" and not succeeded)
        try:
            folder.keep() if keeps else folder.remove()
        except OSError as error:
            log.warning("cannot move or remove a scratch folder: %s", error)

    async def _run(self, job: AsyncJob, folder: WorkFolder) -> Any:
        """Start the program, read its output, and return its result."""
        try:
            command = self._command.fill(Raw(job.payload_json))
        except CannotRunError as error:
            raise FailedError(str(error), retry=False) from error
        reports = Reports(job, self._echo)
        output = Output(on_too_much=lambda: process.terminate(self._options.grace_seconds))
        process = Process(output.feed, reports.feed)
        try:
            pid = await _retry(
                "Cannot start the program:", lambda: self._start(process, command, job, folder)
            )
            self._running.add(process)
            folder.record(pid)
            status = await self._finish(process, reports)
        finally:
            # After a second cancellation there is no grace period. If the program has ended, this does
            # nothing.
            process.kill()
            self._running.discard(process)
            reports.stop()
        if status != 0 and not output.is_too_much:
            raise FailedError(failure(status, reports.last), retry=status not in self._options.give_up_on)
        return output.result()

    async def _start(
        self, process: Process, command: Sequence[str], job: AsyncJob, folder: WorkFolder
    ) -> int:
        # If somebody has removed the program since the tool started, this check explains it better than the
        # kernel.
        commands.check(Path(command[0]))
        with _open(os.devnull if self._options.input == "file" else folder.payload) as stdin:
            return await process.start(
                command,
                environment=_environment(job, folder, self._options),
                folder=folder.path if self._options.in_scratch else None,
                stdin=stdin,
            )

    async def _finish(self, process: Process, reports: Reports) -> int:
        """Wait until the program has ended and its reports are sent; return its exit status."""
        try:
            status = await process.wait()
        except asyncio.CancelledError:
            process.terminate(self._options.grace_seconds)
            await process.wait()
            await reports.finish()
            raise
        await reports.finish()
        return status


def _environment(job: AsyncJob, folder: WorkFolder, options: Options) -> dict[str, str]:
    """Return the environment of this process with the variables of a job, and without any key."""
    # A program gets no key and no settings of a service. The trace in which the tool started is not that of
    # the task.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BROKER_") and name not in ("TRACEPARENT", "TRACESTATE")
    }
    variables = {
        "BROKER_URL": options.url,
        "BROKER_TOOL_ID": job.tool_id,
        "BROKER_TASK_ID": job.task_id,
        "BROKER_WORK_ID": str(job.id),
        "BROKER_ATTEMPT": str(job.attempt),
        "BROKER_NEEDS": job.needs_json.decode(),
        "BROKER_SCRATCH": str(folder.path),
        "TMPDIR": str(folder.path),
    }
    if options.input == "file":
        variables["BROKER_INPUT"] = str(folder.payload)
    trace = tracing.current() or job.trace_context
    return inherited | variables | {name.upper().replace("-", "_"): value for name, value in trace.items()}


async def _retry(trouble: str, attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Retry an operation for some seconds. Jobs that fail at once would use up the attempts of many tasks.

    Raises:
        FailedError: No attempt succeeded. Its text begins with `trouble`.
    """
    loop = asyncio.get_running_loop()
    end: float | None = None
    while True:
        try:
            return await attempt()
        except (OSError, CannotRunError) as error:
            if getattr(error, "errno", None) == errno.E2BIG:
                raise FailedError(f"{trouble} {error}", retry=False) from error
            if end is None:
                end = loop.time() + _PATIENCE_SECONDS
                log.warning("%s %s. Retrying for %.0f s", trouble, error, _PATIENCE_SECONDS)
            if loop.time() >= end:
                raise FailedError(f"{trouble} {error}") from error
        await asyncio.sleep(_PAUSE_SECONDS)


def _open(path: str | Path) -> BinaryIO:
    return Path(path).open("rb")
