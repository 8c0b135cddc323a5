"""Every metric of the service: its name, help text, type, labels and aggregation.

To add a metric, define it here and set its value: with `Metrics.set` in `Service.update_metrics` if a part of
the service knows the value, in `database_metrics` if the database does. The help texts are also the reference
of the metrics. Tests compare the alerts and the Grafana dashboard with these definitions.
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
    "Seconds that tasks waited for their first assignment, by the outcome of that attempt.",
    "outcome",
    buckets=_LONG_SECONDS,
)
WORK_RUN_SECONDS = _histogram(
    "broker_work_run_seconds",
    "Seconds that work ran, from start to end, by outcome.",
    "outcome",
    buckets=_LONG_SECONDS,
)
WORK_ENDED = _counter("broker_work_ended", "Attempts that have ended, by outcome.", "outcome")
WORK_START_SECONDS = _histogram(
    "broker_work_start_seconds",
    "Seconds from the assignment of work until its tool started it.",
    buckets=_SHORT_SECONDS,
)
DISPATCH_SECONDS = _histogram(
    "broker_dispatch_seconds",
    "Seconds from the assignment of work until the broker responded with it to the waiting tool.",
    buckets=_SHORT_SECONDS,
)
LEASES_EXPIRED = _counter(
    "broker_leases_expired", "Tools that went offline because they did not renew their lease in time."
)
UPKEEP = _counter(
    "broker_upkeep",
    "Rows handled in the background, by chore: scheduled tasks (tasks), overdue work (work), tools with"
    " expired leases (tools), old records and partitions (archive).",
    "chore",
)

# Requests

PROBLEMS = _counter("broker_problems", "Error responses, by error code.", "code")
PARKED_REQUESTS = _gauge(
    "broker_parked_requests", "Waiting requests (long polls), by the topic that they wait for.", "topic"
)
PARKED_REQUESTS_MAX = _gauge(
    "broker_parked_requests_max",
    "Maximum number of long polls and event streams together (BROKER_MAX_WAITS).",
)
CONNECTIONS = _gauge("broker_connections", "Open client connections.")
EVENTS_WATCHERS = _gauge("broker_events_watchers", "Clients that read the event stream, GET /v1/events.")
EVENTS_TOLD = _counter(
    "broker_events_told", "Events sent to event-stream subscribers; an event counts once for all subscribers."
)
EVENTS_RESYNCS = _counter(
    "broker_events_resyncs",
    "Times that event-stream subscribers got `resync`, after which they read everything again.",
)

# Transactions and connections

GROUP_COMMIT_SET_SIZE = _histogram(
    "broker_group_commit_set_size",
    "Number of items, such as tasks or reports, that shared a transaction, by step (submission.submit etc.).",
    "step",
    buckets=_SET_SIZES,
)
GROUP_COMMIT_SECONDS = _histogram(
    "broker_group_commit_seconds",
    "Seconds that transactions took, including the network to the database and back, by step.",
    "step",
    buckets=_SHORT_SECONDS,
)
GROUP_COMMIT_WAITING = _gauge(
    "broker_group_commit_waiting",
    "Items that wait for the next transaction, by step. If 10,000 wait for a step, the broker refuses further"
    " ones with 503.",
    "step",
)
DATABASE_CONNECTIONS_IN_USE = _gauge(
    "broker_database_connections_in_use", "Database connections of the pool that are in use."
)
DATABASE_CONNECTIONS_MAX = _gauge(
    "broker_database_connections_max",
    "Maximum number of database connections of the pool (BROKER_POOL_SIZE).",
)
LISTS_WAITING = _gauge(
    "broker_lists_waiting",
    "Reads for lists, exports and dashboards that wait for a database connection (BROKER_READ_POOL_SIZE).",
)
LISTS_NOT_FROM_COPY = _counter(
    "broker_lists_not_from_copy",
    "Reads that went to the primary because the standby at BROKER_READ_URL did not respond.",
)

# Notifications

LISTENER_CONNECTED = _gauge(
    "broker_listener_connected",
    "1 if every process receives notifications from PostgreSQL, else 0. At 0, the broker checks once a second"
    " for waiting requests.",
    aggregation="livemin",
)
LISTENER_CONNECTS = _counter(
    "broker_listener_connects",
    "Times that the listener connected to PostgreSQL. It grows with each reconnection.",
)
LISTENER_NOTIFICATIONS = _counter(
    "broker_listener_notifications", "Notifications that the listener received from PostgreSQL."
)
LISTENER_PROBE_SECONDS = _gauge(
    "broker_listener_probe_seconds",
    "Seconds from the last probe's NOTIFY until the listener received it.",
    aggregation="livemax",
)

# The database. Every process reports the same values.

DATABASE_UP = _gauge("broker_database_up", "1 if the database responded to this scrape, else 0.")
TASKS = _gauge("broker_tasks", "Live tasks, by state.", "state")
TOOLS = _gauge("broker_tools", "Tools, by state.", "state")
TOOLS_ROOM = _gauge(
    "broker_tools_room", "Free capacity: how many more work items the available tools can accept."
)
WORK = _gauge("broker_work", "Work items that have not ended, by state.", "state")
WORK_CANCEL_REQUESTED = _gauge(
    "broker_work_cancel_requested", "Work items whose cancellation is requested and that have not ended."
)
OLDEST_AVAILABLE_SECONDS = _gauge(
    "broker_oldest_available_seconds",
    "Seconds since the oldest available task was submitted; 0 if no task is available.",
)
ASSIGNER_SEEN = _gauge(
    "broker_assigner_seen_timestamp_seconds", "Unix time when an assigner last asked for candidates."
)
DATABASE_TIME = _gauge("broker_database_timestamp_seconds", "Current Unix time of the database.")
NOTIFICATION_QUEUE_USAGE = _gauge(
    "broker_notification_queue_usage",
    "Fill level of PostgreSQL's notification queue, from 0 to 1. When it is full, writes fail.",
)
OLDEST_TRANSACTION_SECONDS = _gauge(
    "broker_oldest_transaction_seconds",
    "Seconds that the oldest open transaction of the PostgreSQL server has been open; 0 if none is open.",
)
