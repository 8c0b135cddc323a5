"""Programs that run until a signal stops them, also on systems whose event loop supports no signals."""

import asyncio
import signal
import sys

import pytest

from tests.support.processes import clean_environment

PROGRAM = """
import asyncio
import sys

from broker.client import signals

def unknown(*_):
    raise NotImplementedError

if sys.argv[1] == "as on Windows":
    asyncio.SelectorEventLoop.add_signal_handler = unknown

async def work():
    try:
        print("begun", flush=True)
        await asyncio.Event().wait()
    finally:
        print("ended in order", flush=True)

signals.run_until_signal(work())
"""


@pytest.mark.parametrize("where", ["here", "as on Windows"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_program_ends_in_order_after_a_signal(where: str, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, where),
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"begun\n"
        process.send_signal(number)
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, out, err) == (0, b"ended in order\n", b"")
