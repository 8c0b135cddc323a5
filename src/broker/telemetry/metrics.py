"""The metrics of a process, as Prometheus reads them.

If several processes serve one address, the library keeps their numbers in shared files. Each of these
processes responds with the numbers of all.
"""

import asyncio
import collections
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector

from broker.errors import Unavailable
from broker.schemas.problems import ErrorCode
from broker.schemas.states import OUTCOMES
from broker.store.observer import EndedWork
from broker.telemetry import metric_definitions
from broker.telemetry.metric_definitions import Aggregation, MetricDefinition

#: The library's own variable for the folder that several processes share.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_WARNED_OF: tuple[ErrorCode, ...] = ("internal", "unavailable", "too_many_requests")

# Each process has its own limit of these. Report the process that is closest to its limit.
_AGGREGATIONS: dict[str, Aggregation] = {
    "process_open_fds": "livemax",
    "process_max_fds": "livemin",
    "process_start_time_seconds": "livemin",
}

# Several times the content of the largest file.
_FILE_BYTES = 1 << 18
_TRIES = 20
_AGAIN_SECONDS = 0.05


class Metrics:
    """The metrics of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # The library does not share the values of this collector. `update_process` does.
        self._process = ProcessCollector(registry=None) if is_shared() else None
        if self._process is None:
            ProcessCollector(registry=self.registry)
        self._counted: dict[Counter, float] = {}

        waited = self._histogram(metric_definitions.WORK_WAIT_SECONDS)
        ran = self._histogram(metric_definitions.WORK_RUN_SECONDS)
        ended = self._counter(metric_definitions.WORK_ENDED)
        # Look the labels up only once, because a lookup costs as much as counting.
        self._waited = {outcome: waited.labels(outcome) for outcome in OUTCOMES}
        self._ran = {outcome: ran.labels(outcome) for outcome in OUTCOMES}
        self._ended = {outcome: ended.labels(outcome) for outcome in OUTCOMES}
        self._started_after = self._histogram(metric_definitions.WORK_START_SECONDS)
        self._dispatched = self._histogram(metric_definitions.DISPATCH_SECONDS)
        self._set_sizes = self._histogram(metric_definitions.GROUP_COMMIT_SET_SIZE)
        self._set_seconds = self._histogram(metric_definitions.GROUP_COMMIT_SECONDS)
        self._problems = self._counter(metric_definitions.PROBLEMS)
        # These counters must start at 0. A counter that appears with its first event shows no increase.
        for code in _WARNED_OF:
            self._problems.labels(code)
        self._of_step: dict[str, tuple[Histogram, Histogram]] = {}
        # The metrics that `set` has created so far.
        self._made: dict[MetricDefinition, Gauge | Counter] = {}

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """Count work that has ended."""
        for outcome, count in collections.Counter(work.outcome for work in works).items():
            self._ended[outcome].inc(count)
        for work in works:
            if work.waited_seconds is not None:
                self._waited[work.outcome].observe(work.waited_seconds)
            if work.ran_seconds is not None:
                self._ran[work.outcome].observe(work.ran_seconds)
            if work.started_after_seconds is not None:
                self._started_after.observe(work.started_after_seconds)

    def set_committed(self, step: str, items: int, seconds: float) -> None:
        """Count a set of items that shared a transaction of some seconds."""
        histograms = self._of_step.get(step)
        if histograms is None:
            histograms = self._set_sizes.labels(step), self._set_seconds.labels(step)
            self._of_step[step] = histograms
        sizes, durations = histograms
        sizes.observe(items)
        durations.observe(seconds)

    def dispatched(self, seconds: float) -> None:
        """Count a waiting tool that got its work, some seconds after the assignment."""
        self._dispatched.observe(seconds)

    def refused(self, code: ErrorCode) -> None:
        """Count an error response with this code."""
        self._problems.labels(code).inc()

    def set(self, definition: MetricDefinition, value: float, *labels: str) -> None:
        """Set the value of a gauge, or the total of a counter that another part counts."""
        metric = self._made.get(definition)
        if metric is None:
            make = self._gauge if definition.kind == "gauge" else self._counter
            metric = self._made[definition] = make(definition)
        child = metric.labels(*labels) if labels else metric
        if isinstance(child, Gauge):
            child.set(value)
        else:
            child.inc(value - self._counted.get(child, 0))
            self._counted[child] = value

    def update_process(self) -> None:
        """Set the process metrics, which the library provides by itself only for a single process."""
        if self._process is None:
            return
        for family in self._process.collect():
            [sample] = family.samples
            kind: Literal["counter", "gauge"] = "counter" if family.type == "counter" else "gauge"
            aggregation = _AGGREGATIONS.get(family.name, "livesum")
            definition = MetricDefinition(kind, family.name, family.documentation, aggregation=aggregation)
            self.set(definition, sample.value)

    async def exposition(self) -> bytes:
        """Return the metrics, of all processes that share their numbers, in the Prometheus text format.

        Raises:
            Unavailable: The numbers of all processes could not be read.
        """
        if not is_shared():
            return generate_latest(self.registry)
        for _ in range(_TRIES):
            registry = CollectorRegistry()
            try:
                MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
                return generate_latest(registry)
            except (OSError, struct.error, ValueError):
                # A process is starting or has ended, so one of its files is incomplete or missing.
                await asyncio.sleep(_AGAIN_SECONDS)
        raise Unavailable("The metrics of all processes could not be read. Repeat the request.")

    def _gauge(self, definition: MetricDefinition) -> Gauge:
        return Gauge(
            definition.name,
            definition.help,
            definition.labels,
            registry=self.registry,
            multiprocess_mode=definition.aggregation,
        )

    def _counter(self, definition: MetricDefinition) -> Counter:
        return Counter(definition.name, definition.help, definition.labels, registry=self.registry)

    def _histogram(self, definition: MetricDefinition) -> Histogram:
        return Histogram(
            definition.name,
            definition.help,
            definition.labels,
            buckets=definition.buckets,
            registry=self.registry,
        )


def is_shared() -> bool:
    """Return whether several processes share their metrics."""
    return bool(os.environ.get(SHARED_FOLDER))


def make_room(folder: str) -> None:
    """Allocate the files with which this process shares its metrics, in the common folder.

    The library maps sparse files into memory. On a full disk, counting would then crash the process.

    Raises:
        OSError: The disk is full.
    """
    for name in ("counter", "histogram", *(f"gauge_{aggregation}" for aggregation in get_args(Aggregation))):
        with (Path(folder) / f"{name}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
