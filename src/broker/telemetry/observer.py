"""Count and log the effects of the store's transactions."""

import logging
from collections.abc import Sequence

import structlog

from broker.schemas.states import OUTCOMES
from broker.store.observer import EndedWork
from broker.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


class StoreObserver:
    """Records the store's transactions as metrics, and logs ended work."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.set_committed = metrics.set_committed

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """Count and log work that has ended."""
        self._metrics.work_ended(works)
        logs_all = logging.getLogger("broker").isEnabledFor(logging.DEBUG)
        for work in works:
            # The tool does not know of an outcome that the broker decided on.
            by_broker = not OUTCOMES[work.outcome].sent_by_tool
            if not (logs_all or by_broker):
                continue
            log.log(
                logging.INFO if by_broker else logging.DEBUG,
                "work ended",
                outcome=work.outcome,
                work_id=str(work.work_id),
                task_id=work.task_id,
                tool_id=work.tool_id,
                ran_seconds=work.ran_seconds,
            )
