"""Count and log what the store does."""

import logging
from collections.abc import Sequence

import structlog

from broker.schemas.states import OUTCOMES
from broker.store.observer import EndedWork
from broker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class StoreObserver:
    """Counts what the store does as metrics, and logs work that ended."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.set_committed = metrics.set_committed

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """Count and log work that has ended."""
        self._metrics.work_ended(works)
        logs_all = logging.getLogger("broker").isEnabledFor(logging.DEBUG)
        for work in works:
            # An outcome that the broker decided on surprises the tool and the submitter.
            surprises = not OUTCOMES[work.outcome].sent_by_tool
            if not (logs_all or surprises):
                continue
            log.log(
                logging.INFO if surprises else logging.DEBUG,
                "work ended",
                outcome=work.outcome,
                work_id=str(work.work_id),
                task_id=work.task_id,
                tool_id=work.tool_id,
                ran_seconds=work.ran_seconds,
            )
