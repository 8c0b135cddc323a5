"""The parts of a running broker. Every handler gets them."""

from msgspec import Struct

from broker.access.keyring import Keyring
from broker.access.ownership import Owners
from broker.background.event_stream import EventStream
from broker.background.presence import Attendance, Presence
from broker.background.upkeep import Upkeep
from broker.settings import Settings
from broker.store import Store
from broker.store.replica_reads import ReadPool, ReplicaReads
from broker.store.shared_queries import SharedQueries
from broker.telemetry import metric_definitions
from broker.telemetry.metrics import Metrics
from broker.wake.listener import CANDIDATES, TASK, TOOL, WORK, Listener
from broker.wake.sweep import Sweep
from broker.wake.wait_limits import WaitLimits
from broker.wake.waiters import Waiters

# The topics that requests wait for. `/v1/events` has a metric of its own.
_TOPICS = (CANDIDATES, TASK, TOOL, WORK)


class Service(Struct, frozen=True, kw_only=True):
    """The parts of a running broker."""

    settings: Settings
    metrics: Metrics
    store: Store
    replica_reads: ReplicaReads
    primary_reads: ReadPool
    owners: Owners
    keyring: Keyring
    waiters: Waiters
    listener: Listener
    wait_limits: WaitLimits
    sweep: Sweep
    presence: Presence
    attendance: Attendance
    shared_queries: SharedQueries
    archive_queries: SharedQueries
    event_stream: EventStream
    upkeep: Upkeep

    def update_metrics(self) -> None:
        """Set the metrics from the counters of the parts."""
        record = self.metrics.set
        self.metrics.update_process()
        self._record_listener()
        counts = self.waiters.counts()
        for topic in _TOPICS:
            record(metric_definitions.PARKED_REQUESTS, counts[topic], topic.removeprefix("broker_"))
        record(metric_definitions.PARKED_REQUESTS_MAX, self.settings.max_waits)
        record(metric_definitions.DATABASE_CONNECTIONS_IN_USE, self.store.in_use())
        record(metric_definitions.DATABASE_CONNECTIONS_MAX, self.settings.pool_size)
        record(metric_definitions.LISTS_WAITING, self.replica_reads.waiting)
        record(metric_definitions.LISTS_NOT_FROM_COPY, self.replica_reads.missed)
        for step, waiting in self.store.waiting().items():
            record(metric_definitions.GROUP_COMMIT_WAITING, waiting, step)
        record(metric_definitions.EVENTS_WATCHERS, self.event_stream.subscriber_count)
        record(metric_definitions.EVENTS_TOLD, self.event_stream.sent)
        record(metric_definitions.EVENTS_RESYNCS, self.event_stream.resyncs)
        for chore, done in self.upkeep.done.items():
            record(metric_definitions.UPKEEP, done, chore)
        record(metric_definitions.LEASES_EXPIRED, self.upkeep.done["tools"])

    def _record_listener(self) -> None:
        record, listener = self.metrics.set, self.listener
        record(metric_definitions.LISTENER_CONNECTED, int(listener.connected.is_set()))
        record(metric_definitions.LISTENER_CONNECTS, listener.connects)
        record(metric_definitions.LISTENER_NOTIFICATIONS, listener.received)
        if listener.probe_latency_seconds is not None:
            record(metric_definitions.LISTENER_PROBE_SECONDS, listener.probe_latency_seconds)
