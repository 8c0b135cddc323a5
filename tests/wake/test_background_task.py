"""The base class of background tasks: they start and stop, and log each problem once."""

import asyncio

import structlog
from structlog.testing import capture_logs

from broker.wake.background_task import BackgroundTask, TroubleLog


class Endless(BackgroundTask):
    """A background task that runs until `stop`."""

    def __init__(self) -> None:
        super().__init__("endless")
        self.started = asyncio.Event()
        self.ended = False

    async def _run(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


async def test_a_background_task_runs_from_start_to_stop() -> None:
    endless = Endless()
    await endless.stop()
    endless.start()
    await endless.started.wait()
    assert "endless" in {task.get_name() for task in asyncio.all_tasks()}
    await endless.stop()
    assert endless.ended


def test_each_problem_is_logged_once_until_the_task_succeeds_again() -> None:
    trouble = TroubleLog(structlog.get_logger(), "it failed; retrying", chore="tools")
    assert not trouble.clear()
    with capture_logs() as logs:
        for reason in ("no", "no", "full", "no", "full"):
            trouble.note(OSError(reason))
        assert trouble.clear()
        assert not trouble.clear()
        trouble.note(OSError("full"))
    assert [line["error"] for line in logs] == ["OSError('no')", "OSError('full')", "OSError('full')"]
    assert logs[0] == {
        "event": "it failed; retrying", "log_level": "warning", "chore": "tools", "error": "OSError('no')",
    }  # fmt: skip
