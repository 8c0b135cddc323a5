"""Every metric of the service: its name, help text, type, labels and aggregation.

To add a metric, define it here and set its value: with `Metrics.set` in `Service.update_metrics` if a part of
the service knows the value, in `database_metrics` if the database does. The alerts, the dashboards of Grafana
and docs/operate/monitor.md are tested against these definitions.
"""

from typing import Literal

from msgspec import Struct

#: How Prometheus' library combines the gauges of several processes that serve one address.
Aggregation = Literal["livesum", "livemin", "livemax"]

_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LONG_SECONDS = (0.01, 0.05, 0.25, 1, 5, 15, 60, 300, 900, 3_600, 14_400, 43_200, 86_400)
_SET_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class MetricDefinition(Struct, frozen=True):
    """A metric. Prometheus appends `_total` to the name of a counter. The buckets are upper bounds."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    aggregation: Aggregation = "livesum"
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, *labels: str) -> MetricDefinition:
    return MetricDefinition("counter", name, text, labels)


def _gauge(name: str, text: str, *labels: str, aggregation: Aggregation = "livesum") -> MetricDefinition:
    return MetricDefinition("gauge", name, text, labels, aggregation)


def _histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> MetricDefinition:
    return MetricDefinition("histogram", name, text, labels, buckets=buckets)


# Work

WORK_WAIT_SECONDS = _histogram(
    "broker_work_wait_seconds",
    "How long tasks had waited when they were first assigned, by how that attempt ended.",
    "outcome",
    buckets=_LONG_SECONDS,
)
WORK_RUN_SECONDS = _histogram(
    "broker_work_run_seconds", "How long work ran, from start to end.", "outcome", buckets=_LONG_SECONDS
)
WORK_ENDED = _counter("broker_work_ended", "Attempts that have ended, by outcome.", "outcome")
WORK_START_SECONDS = _histogram(
    "broker_work_start_seconds", "How long it took from assigned to started.", buckets=_SHORT_SECONDS
)
DISPATCH_SECONDS = _histogram(
    "broker_dispatch_seconds",
    "How long it took from assigned until a tool that waited was told.",
    buckets=_SHORT_SECONDS,
)
LEASES_EXPIRED = _counter(
    "broker_leases_expired", "Tools that were silent past their lease, and are offline for it."
)
UPKEEP = _counter("broker_upkeep", "What the upkeep has dealt with: tasks, work, tools, records.", "chore")

# Requests

PROBLEMS = _counter("broker_problems", "Requests that were answered with a problem, by its code.", "code")
PARKED_REQUESTS = _gauge("broker_parked_requests", "Requests that wait to be woken, by what for.", "topic")
PARKED_REQUESTS_MAX = _gauge("broker_parked_requests_max", "How many may wait in all (BROKER_MAX_WAITS).")
CONNECTIONS = _gauge("broker_connections", "Clients that are connected.")
EVENTS_WATCHERS = _gauge("broker_events_watchers", "Clients that watch /v1/events.")
EVENTS_TOLD = _counter("broker_events_told", "Events told, each once however many watch.")
EVENTS_RESYNCS = _counter("broker_events_resyncs", "How often clients were told to read anew.")

# Transactions and connections

GROUP_COMMIT_SET_SIZE = _histogram(
    "broker_group_commit_set_size", "How many calls shared a transaction.", "step", buckets=_SET_SIZES
)
GROUP_COMMIT_SECONDS = _histogram(
    "broker_group_commit_seconds",
    "How long the transactions took, the way to the database and back included.",
    "step",
    buckets=_SHORT_SECONDS,
)
GROUP_COMMIT_WAITING = _gauge(
    "broker_group_commit_waiting",
    "Calls that wait for the next set, which are refused beyond 10,000.",
    "step",
)
DATABASE_CONNECTIONS_IN_USE = _gauge("broker_database_connections_in_use", "Connections of the pool in use.")
DATABASE_CONNECTIONS_MAX = _gauge("broker_database_connections_max", "How many the pool may have.")
LISTS_WAITING = _gauge(
    "broker_lists_waiting",
    "Lists, exports and dashboards that wait for a database connection (BROKER_READ_POOL_SIZE).",
)
LISTS_NOT_FROM_COPY = _counter(
    "broker_lists_not_from_copy",
    "Lists that were read from the database itself though there is BROKER_READ_URL.",
)

# Notifications

LISTENER_CONNECTED = _gauge(
    "broker_listener_connected",
    "Whether notifications are heard, in every process; if not, waiting requests look every second.",
    aggregation="livemin",
)
LISTENER_CONNECTS = _counter("broker_listener_connects", "How often the listener has connected.")
LISTENER_NOTIFICATIONS = _counter("broker_listener_notifications", "Notifications heard.")
LISTENER_PROBE_SECONDS = _gauge(
    "broker_listener_probe_seconds",
    "How long the last probe took from NOTIFY until it was heard.",
    aggregation="livemax",
)

# The database. Every process reports the same values.

DATABASE_UP = _gauge("broker_database_up", "Whether the database has answered just now.")
TASKS = _gauge("broker_tasks", "Live tasks, by state.", "state")
TOOLS = _gauge("broker_tools", "Tools, by state.", "state")
TOOLS_ROOM = _gauge("broker_tools_room", "How much more work the available tools can take.")
WORK = _gauge("broker_work", "Work under way, by state.", "state")
WORK_CANCEL_REQUESTED = _gauge("broker_work_cancel_requested", "Work that was asked to stop.")
OLDEST_AVAILABLE_SECONDS = _gauge(
    "broker_oldest_available_seconds",
    "How long ago the oldest available task was submitted; 0: there is none.",
)
ASSIGNER_SEEN = _gauge("broker_assigner_seen_timestamp_seconds", "When an assigner last asked.")
DATABASE_TIME = _gauge("broker_database_timestamp_seconds", "What time it is by the database.")
NOTIFICATION_QUEUE_USAGE = _gauge(
    "broker_notification_queue_usage",
    "How full PostgreSQL's queue of notifications is, from 0 to 1; when it is full, writes fail.",
)
OLDEST_TRANSACTION_SECONDS = _gauge(
    "broker_oldest_transaction_seconds",
    "How long the oldest open transaction of PostgreSQL has been open; 0: there is none.",
)
