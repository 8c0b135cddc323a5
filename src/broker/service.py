"""The parts of a running broker, as every handler is given them."""

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
from broker.telemetry.metrics import Metrics
from broker.wake.listener import CANDIDATES, TASK, TOOL, WORK, Listener
from broker.wake.longpoll import LongPoll
from broker.wake.sweep import Sweep
from broker.wake.wait_limits import WaitLimits
from broker.wake.waiters import Waiters

# What requests wait for; `/v1/events` has a gauge of its own.
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
    poll: LongPoll
    wait_limits: WaitLimits
    sweep: Sweep
    presence: Presence
    attendance: Attendance
    shared_queries: SharedQueries
    archive_queries: SharedQueries
    event_stream: EventStream
    upkeep: Upkeep

    def update_metrics(self) -> None:
        """Set the metrics that the parts count by themselves."""
        gauge, count = self.metrics.gauge, self.metrics.count
        self.metrics.note_process()
        self._note_listener()
        for topic, parked in _waiting(self.waiters).items():
            told = "Requests that wait to be woken, by what for."
            gauge("broker_parked_requests", told, parked, topic=topic)
        settings, told = self.settings, "How many may wait in all (BROKER_MAX_WAITS)."
        gauge("broker_parked_requests_max", told, settings.max_waits)
        gauge("broker_database_connections_in_use", "Connections of the pool in use.", self.store.in_use())
        gauge("broker_database_connections_max", "How many the pool may have.", settings.pool_size)
        gauge(
            "broker_lists_waiting",
            "Lists, exports and dashboards that wait for a database connection (BROKER_READ_POOL_SIZE).",
            self.replica_reads.waiting,
        )
        count(
            "broker_lists_not_from_copy",
            "Lists that were read from the database itself though there is BROKER_READ_URL.",
            self.replica_reads.missed,
        )
        for step, waiting in self.store.waiting().items():
            gauge(
                "broker_group_commit_waiting",
                "Calls that wait for the next set, which are refused beyond 10,000.",
                waiting,
                step=step,
            )
        feed = self.event_stream
        gauge("broker_events_watchers", "Clients that watch /v1/events.", feed.watchers)
        count("broker_events_told", "Events told, each once however many watch.", feed.told)
        count("broker_events_resyncs", "How often clients were told to read anew.", feed.resyncs)
        for chore, done in self.upkeep.done.items():
            told = "What the upkeep has dealt with: tasks, work, tools, records."
            count("broker_upkeep", told, done, chore=chore)
        count(
            "broker_leases_expired",
            "Tools that were silent past their lease, and are offline for it.",
            self.upkeep.done["tools"],
        )

    def _note_listener(self) -> None:
        gauge, count, listener = self.metrics.gauge, self.metrics.count, self.listener
        gauge(
            "broker_listener_connected",
            "Whether notifications are heard, in every process; if not, waiting requests look every second.",
            int(listener.connected.is_set()),
            of_all="livemin",
        )
        count("broker_listener_connects", "How often the listener has connected.", listener.connects)
        count("broker_listener_notifications", "Notifications heard.", listener.heard)
        if listener.probe_latency_seconds is not None:
            gauge(
                "broker_listener_probe_seconds",
                "How long the last probe took from NOTIFY until it was heard.",
                listener.probe_latency_seconds,
                of_all="livemax",
            )


def _waiting(waiters: Waiters) -> dict[str, int]:
    counts = waiters.counts()
    return {topic.removeprefix("broker_"): counts[topic] for topic in _TOPICS}
