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
from broker.wake.listener import Listener
from broker.wake.longpoll import LongPoll
from broker.wake.sweep import Sweep
from broker.wake.wait_limits import WaitLimits
from broker.wake.waiters import Waiters


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
