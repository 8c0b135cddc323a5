"""Problems of the database: the log names each cause once, and the readiness check while it lasts."""

import time
from collections.abc import Callable

import structlog

from broker.errors import DatabaseTrouble, RowTrouble

log = structlog.get_logger(__name__)

# A cause has ended if no step had a problem with it for this long.
_LASTS_SECONDS = 5.0
# The log repeats a cause only if no step had a problem with it for this long.
_SILENT_SECONDS = 60.0


class Troubles:
    """The latest problem of each step, with the cause that the database reported.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._met: dict[str, tuple[float, DatabaseTrouble]] = {}
        self._logged: dict[str, float] = {}

    def __bool__(self) -> bool:
        """Return whether any step had a problem and has not succeeded since."""
        return bool(self._met)

    def note(self, step: str, trouble: DatabaseTrouble) -> None:
        """Record the problem of a step, and log its cause once while it lasts."""
        now = self._clock()
        self._met[step] = now, trouble
        if now - self._logged.get(trouble.cause, -_SILENT_SECONDS) >= _SILENT_SECONDS:
            log.warning("database reported trouble", cause=trouble.cause, step=step)
        self._logged[trouble.cause] = now

    def clear(self, step: str) -> None:
        """Forget the problem of a step, because the step has succeeded."""
        self._met.pop(step, None)

    def causes(self, *, of_service: bool = False) -> list[str]:
        """Return the recent causes. With `of_service`, exclude causes that a single request can trigger."""
        since = self._clock() - _LASTS_SECONDS
        self._met = {step: each for step, each in self._met.items() if each[0] > since}
        troubles = [trouble for _, trouble in self._met.values()]
        return sorted({each.cause for each in troubles if not (of_service and isinstance(each, RowTrouble))})
