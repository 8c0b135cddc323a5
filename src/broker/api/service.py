"""The parts of a running broker, as every handler is given them."""

from msgspec import Struct

from broker.access.keyring import Keyring
from broker.access.ownership import Owners
from broker.feed import Feed
from broker.lists import Lists, Reads
from broker.metrics import Metrics
from broker.places import Places
from broker.presence import Attendance, Presence
from broker.readings import Readings
from broker.settings import Settings
from broker.store import Store
from broker.upkeep import Upkeep
from broker.wake.listener import Listener
from broker.wake.longpoll import LongPoll
from broker.wake.sweep import Sweep
from broker.wake.waiters import Waiters


class Service(Struct, frozen=True, kw_only=True):
    """The parts of a running broker."""

    settings: Settings
    metrics: Metrics
    store: Store
    lists: Lists
    fresh: Reads
    owners: Owners
    keyring: Keyring
    waiters: Waiters
    listener: Listener
    poll: LongPoll
    places: Places
    sweep: Sweep
    presence: Presence
    attendance: Attendance
    readings: Readings
    past: Readings
    feed: Feed
    upkeep: Upkeep
