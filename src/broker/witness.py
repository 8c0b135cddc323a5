"""The witness: counts what the store does, and logs what somebody will ask for."""

import logging
from collections.abc import Sequence

import structlog

from broker.metrics import Metrics
from broker.store.facts import WorkEnded

log = structlog.get_logger(__name__)

# What nobody has asked for.
_UNASKED = {"lost", "timed_out"}


class Witness:
    """Counts and logs what the store does.

    Args:
        metrics: Where it is counted.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.set_taken = metrics.set_taken

    def ended(self, works: Sequence[WorkEnded]) -> None:
        """These pieces of work have ended."""
        self._metrics.ended(works)
        tells_all = logging.getLogger("broker").isEnabledFor(logging.DEBUG)
        for work in works:
            if not (tells_all or work.outcome in _UNASKED):
                continue
            log.log(
                logging.INFO if work.outcome in _UNASKED else logging.DEBUG,
                "work ended",
                outcome=work.outcome,
                work_id=str(work.work_id),
                task_id=work.task_id,
                tool_id=work.tool_id,
                ran_seconds=work.ran_seconds,
            )
