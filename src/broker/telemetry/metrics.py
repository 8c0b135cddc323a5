"""Metrics: what a process counts of itself, as Prometheus takes it.

Where several processes serve one socket, the library keeps its numbers in files that they share: whichever
of them is asked, answers for all.
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

#: The library's own variable: a folder that several processes share.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

OfAll = Literal["livesum", "livemin", "livemax"]

_WARNED_OF: tuple[ErrorCode, ...] = ("internal", "unavailable", "too_many_requests")

# Of what there is a limit for each process, that one is told which comes nearest to it.
_OF_ALL_PROCESSES: dict[str, OfAll] = {
    "process_open_fds": "livemax",
    "process_max_fds": "livemin",
    "process_start_time_seconds": "livemin",
}

# Several times what is in the largest of the files.
_FILE_BYTES = 1 << 18
_TRIES = 20
_AGAIN_SECONDS = 0.05

_MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_WHILES = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
_SETS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """What a process counts of itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # What it reads is not shared by itself.
        self._process = ProcessCollector(registry=None) if is_shared() else None
        if self._process is None:
            ProcessCollector(registry=self.registry)
        self._counted: dict[Counter, float] = {}

        waited = self._histogram(
            "broker_work_wait_seconds",
            "How long tasks had waited when they were first assigned, by how that attempt ended.",
            _WHILES,
            ["outcome"],
        )
        ran = self._histogram(
            "broker_work_run_seconds", "How long work ran, from start to end.", _WHILES, ["outcome"]
        )
        ended = self._counter("broker_work_ended", "Attempts that have ended, by outcome.", ["outcome"])
        # Looked up once: that costs as much as to count.
        self._waited = {outcome: waited.labels(outcome) for outcome in OUTCOMES}
        self._ran = {outcome: ran.labels(outcome) for outcome in OUTCOMES}
        self._ended = {outcome: ended.labels(outcome) for outcome in OUTCOMES}
        self._started_after = self._histogram(
            "broker_work_start_seconds", "How long it took from assigned to started.", _MOMENTS
        )
        self._dispatched = self._histogram(
            "broker_dispatch_seconds",
            "How long it took from assigned until a tool that waited was told.",
            _MOMENTS,
        )
        self._sets = self._histogram(
            "broker_group_commit_set_size", "How many calls shared a transaction.", _SETS, ["step"]
        )
        self._took = self._histogram(
            "broker_group_commit_seconds",
            "How long the transactions took, the way to the database and back included.",
            _MOMENTS,
            ["step"],
        )
        self._refused = self._counter(
            "broker_problems", "Requests that were answered with a problem, by its code.", ["code"]
        )
        # A counter that begins with its first event has no increase to be warned of.
        for code in _WARNED_OF:
            self._refused.labels(code)
        self._of_step: dict[str, tuple[Histogram, Histogram]] = {}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}

    def work_ended(self, works: Sequence[EndedWork]) -> None:
        """These pieces of work have ended."""
        for outcome, many in collections.Counter(work.outcome for work in works).items():
            self._ended[outcome].inc(many)
        for work in works:
            if work.waited_seconds is not None:
                self._waited[work.outcome].observe(work.waited_seconds)
            if work.ran_seconds is not None:
                self._ran[work.outcome].observe(work.ran_seconds)
            if work.started_after_seconds is not None:
                self._started_after.observe(work.started_after_seconds)

    def set_committed(self, step: str, items: int, seconds: float) -> None:
        """A set of so many items shared a transaction, which took so long."""
        found = self._of_step.get(step)
        if found is None:
            found = self._of_step[step] = (self._sets.labels(step), self._took.labels(step))
        sets, took = found
        sets.observe(items)
        took.observe(seconds)

    def dispatched(self, seconds: float) -> None:
        """A tool that waited was told of its work, so long after that was assigned."""
        self._dispatched.observe(seconds)

    def refused(self, code: ErrorCode) -> None:
        """A request was answered with a problem of this code."""
        self._refused.labels(code).inc()

    def gauge(self, name: str, told: str, value: float, *, of_all: OfAll = "livesum", **labels: str) -> None:
        """Set what has a value now.

        Args:
            name: The metric's name.
            told: What it is, for people.
            value: Its value in this process.
            of_all: What the value of several processes is, as the library calls it.
            labels: Of which of them.
        """
        if (gauge := self._gauges.get(name)) is None:
            gauge = Gauge(name, told, list(labels), registry=self.registry, multiprocess_mode=of_all)
            self._gauges[name] = gauge
        (gauge.labels(**labels) if labels else gauge).set(value)

    def note_process(self) -> None:
        """Set what the library reads of a process by itself where there is but one."""
        if self._process is None:
            return
        for family in self._process.collect():
            [sample] = family.samples
            if family.type == "counter":
                self.count(family.name, family.documentation, sample.value)
            else:
                of_all = _OF_ALL_PROCESSES.get(family.name, "livesum")
                self.gauge(family.name, family.documentation, sample.value, of_all=of_all)

    def count(self, name: str, told: str, value: float, **labels: str) -> None:
        """Set what only grows and is counted elsewhere; otherwise like `gauge`."""
        if (counter := self._counters.get(name)) is None:
            counter = self._counters[name] = self._counter(name, told, list(labels))
        child = counter.labels(**labels) if labels else counter
        child.inc(value - self._counted.get(child, 0))
        self._counted[child] = value

    async def told(self) -> bytes:
        """What there is to tell; of all processes, where they share their numbers."""
        if not is_shared():
            return generate_latest(self.registry)
        for _ in range(_TRIES):
            registry = CollectorRegistry()
            try:
                MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
                return generate_latest(registry)
            except (OSError, struct.error, ValueError):
                # A process begins, or has ended: one of its files is not whole yet, or just gone.
                await asyncio.sleep(_AGAIN_SECONDS)
        raise Unavailable("The metrics of all processes cannot be gathered just now.")

    def _counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def _histogram(
        self, name: str, told: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, told, labels, buckets=buckets, registry=self.registry)


def is_shared() -> bool:
    """Whether several processes share their numbers."""
    return bool(os.environ.get(SHARED_FOLDER))


def make_room(folder: str) -> None:
    """Have the files in which this process shares its numbers on the disk as a whole.

    The library maps them into memory and leaves holes in them: with a full disk, to count would be to crash.

    Args:
        folder: The one that the processes share.

    Raises:
        OSError: The disk is full.
    """
    for name in ("counter", "histogram", *(f"gauge_{of_all}" for of_all in get_args(OfAll))):
        with (Path(folder) / f"{name}_{os.getpid()}.db").open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
