"""Run background tasks of the service, and log each reason for a failure once."""

import asyncio

import structlog


class BackgroundTask:
    """A background task of the service, which runs from `start` to `stop`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Cancel the task and wait until it has ended."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        raise NotImplementedError


class TroubleLog:
    """Logs why a background task fails: each reason once, until the task succeeds again."""

    def __init__(self, log: structlog.stdlib.BoundLogger, event: str, **facts: str) -> None:
        self._log = log
        self._event = event
        self._facts = facts
        self._logged: set[str] = set()

    def note(self, error: Exception) -> None:
        """Log an error, unless it was already logged since the last success."""
        reason = repr(error)
        if reason not in self._logged:
            self._logged.add(reason)
            self._log.warning(self._event, **self._facts, error=reason)

    def clear(self) -> bool:
        """Record a success, and return whether the task failed before it."""
        had_trouble = bool(self._logged)
        self._logged.clear()
        return had_trouble
