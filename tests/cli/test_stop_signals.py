"""Stop signals: a command ends quietly, also if the signal comes while the command starts."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import broker.cli

_COMMAND = """
import asyncio, os, signal
from broker.cli.stop_signals import run_async_in, sigterm_as_ctrl_c

signal.signal(signal.SIGINT, signal.{ctrl_c})

places = ["{place}"]

def stop(place):
    if place in places:
        places.remove(place)
        os.kill(os.getpid(), signal.SIGTERM)

class Loop(asyncio.SelectorEventLoop):
    def __init__(self):
        stop("before the loop")
        super().__init__()
        stop("after the loop")

    def create_task(self, coroutine, **options):
        stop("before the task")
        task = super().create_task(coroutine, **options)
        stop("after the task")
        return task

    def close(self):
        stop("before the end")
        super().close()
        stop("after the end")

async def work():
    stop("at work")
    await asyncio.sleep(0 if "end" in "{place}" else 60)

with sigterm_as_ctrl_c():
    stop("before all")
    run_async_in(Loop, work)
    stop("after all")
"""


@pytest.mark.parametrize("ctrl_c", ["default_int_handler", "SIG_IGN"])
@pytest.mark.parametrize(
    "place",
    [
        "before all",
        "before the loop",
        "after the loop",
        "before the task",
        "after the task",
        "at work",
        "before the end",
        "after the end",
    ],
)
def test_sigterm_ends_a_command_quietly_at_any_time(place: str, ctrl_c: str) -> None:
    command = _COMMAND.format(place=place, ctrl_c=ctrl_c)
    ended = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "")


def test_commands_run_coroutines_only_through_the_signal_functions() -> None:
    modules = Path(broker.cli.__file__).parent.glob("*.py")
    assert [
        module.name for module in modules if re.search(r"(asyncio|uvloop)\.run\(", module.read_text())
    ] == []
