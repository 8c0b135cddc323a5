"""The event stream: read changes once for all subscribers, and send them as Server-Sent Events.

Notifications only say what to read. The events contain what was read. If there are too many changes, or if
notifications were lost, subscribers get `resync` and read everything again.
"""

import asyncio
import contextlib
import random
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct

from broker.background.changes import KINDS, TOO_MANY_CHANGES, PendingChanges
from broker.schemas.overview import EVENT_KINDS, EventKind, Resync
from broker.schemas.states import WorkState
from broker.store import Store, events
from broker.wake.background_task import BackgroundTask, TroubleLog
from broker.wake.listener import EVENTS
from broker.wake.waiters import Waiter

log = structlog.get_logger(__name__)

# Changes that are written together should be sent together.
_GATHER_SECONDS = 0.01
# The pause between two rounds is at least this long, and at least a multiple of the last round's duration, up
# to a limit. So the event stream keeps one connection busy only part of the time.
_ROUND_SECONDS = 0.25
_PAUSES_PER_ROUND = 4
_LONGEST_PAUSE_SECONDS = 2.0
_RETRY_SECONDS = 1.0

# The maximum size of one round, of the kept rounds together, and of the queue of one subscriber.
_MOST_BYTES = 256 * 1024
# The maximum number of work items whose last sent state is remembered.
_MOST_KNOWN = 20_000
# The time after which a browser reconnects. It is a range, because not all should reconnect together.
_RECONNECT_MILLISECONDS = (1_000, 3_000)

_LISTENER_LOST = "The broker may have missed notifications from PostgreSQL."
_NOT_KEPT = "The events after your Last-Event-ID are no longer stored."
_SLOW = "The connection was too slow to receive all events."

NamedEvent: TypeAlias = "tuple[EventKind | Literal['resync'], Struct]"


class Subscriber:
    """A client that reads the event stream, and its queue of events."""

    def __init__(self, waiter: Waiter, first: bytes) -> None:
        self._waiter = waiter
        self._queue = [first]
        self._bytes = len(first)
        #: Whether to check the client's key again before sending anything.
        self.must_check_access = False

    @property
    def is_ready(self) -> bool:
        """True if the queue has events, or the access must be checked."""
        return self.must_check_access or bool(self._queue)

    def check_access(self) -> None:
        """Require a new check of the client's key before the next events."""
        self.must_check_access = True
        self._waiter.wake()

    def put(self, round_: bytes) -> bool:
        """Add a round to the queue. Return False if the queue is full."""
        if self._bytes + len(round_) > _MOST_BYTES:
            return False
        self._queue.append(round_)
        self._bytes += len(round_)
        self._waiter.wake()
        return True

    def replace(self, resync: bytes) -> None:
        """Replace the queue with a resync."""
        self._queue, self._bytes = [resync], len(resync)
        self._waiter.wake()

    def pop_all(self) -> bytes:
        """Return the whole queue and empty it."""
        content = b"".join(self._queue)
        self._queue, self._bytes = [], 0
        return content


class EventStream(BackgroundTask):
    """Sends changes to all subscribers as Server-Sent Events.

    A round consists of the events from one query. Rounds are numbered, and the last ones are kept, so a
    reconnecting client gets the rounds that it has missed. While there is no subscriber, the event stream
    reads nothing and only counts the rounds.
    """

    def __init__(self, store: Store) -> None:
        super().__init__("event stream")
        self._store = store
        self._subscribers: set[Subscriber] = set()
        self._pending = PendingChanges()
        self._has_pending = asyncio.Event()
        # The last sent state of each work item. It shows which work is new and which has started.
        self._known: dict[UUID, WorkState] = {}
        self._run_id = secrets.token_hex(4)
        # The number of the last round. If rounds are kept, it is the number of the last item of `_rounds`.
        self._number = 0
        self._rounds: deque[bytes] = deque()
        self._kept_bytes = 0
        self._trouble = TroubleLog(log, "event stream failed; retrying")
        #: The number of events sent, each counted once for all subscribers.
        self.sent = 0
        #: The number of resyncs sent.
        self.resyncs = 0

    @property
    def subscriber_count(self) -> int:
        """The number of subscribers."""
        return len(self._subscribers)

    @contextlib.contextmanager
    def subscribe(self, waiter: Waiter, after: str | None) -> Iterator[Subscriber]:
        """Subscribe a client for the length of a block. It has received the events up to the id `after`."""
        subscriber = Subscriber(waiter, self._greeting(after))
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def receive(self, channel: str, payload: str) -> None:
        """Handle a notification."""
        if channel == EVENTS:
            source, _, payload = payload.partition(" ")
        else:
            source = channel
        if source in KINDS:
            if self._subscribers:
                self._pending.add(source, payload)
                self._has_pending.set()
            else:
                self._skip()
        elif source == "key":
            for subscriber in self._subscribers:
                subscriber.check_access()

    def miss(self) -> None:
        """Handle that notifications may be lost."""
        if self._subscribers:
            self._pending.miss(_LISTENER_LOST)
            self._has_pending.set()
        else:
            self._skip()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_pending.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._has_pending.clear()
            began = loop.time()
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - the next round retries, whatever the error
                self._trouble.note(error)
                self._has_pending.set()
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._trouble.clear()
                pause = min(_PAUSES_PER_ROUND * (loop.time() - began), _LONGEST_PAUSE_SECONDS)
                await asyncio.sleep(max(pause, _ROUND_SECONDS))

    async def _round(self) -> None:
        """Read the pending changes and publish them. After an error, they stay pending."""
        pending, self._pending = self._pending, PendingChanges()
        if not self._subscribers:
            self._skip()
            return
        ids, missed = pending.ids, pending.missed
        if len(missed) == len(EVENT_KINDS):
            ids = PendingChanges().ids
        try:
            changes = await self._store.read(
                events.read,
                tasks=ids["task"],
                tools=ids["tool"],
                work=[UUID(id_) for id_ in ids["work"]],
                known=self._known,
            )
        except BaseException:
            pending.join(self._pending)
            self._pending = pending
            raise
        self._remember(changes)
        round_events: list[NamedEvent] = []
        if missed:
            kinds = [kind for kind in EVENT_KINDS if kind in missed]
            round_events.append(("resync", Resync(of=kinds, why=pending.why)))
        of_kind: dict[EventKind, Sequence[Struct]] = {
            "task": changes.tasks,
            "tool": changes.tools,
            "work": changes.work,
            "archive": changes.records,
        }
        round_events += [(kind, each) for kind in EVENT_KINDS if kind not in missed for each in of_kind[kind]]
        self._publish(round_events)

    def _remember(self, changes: events.Events) -> None:
        """Remember the states of work. The next round uses them to detect new and newly started work."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        for work in changes.work:
            self._known[work.id] = work.state
        for record in changes.records:
            self._known.pop(record.work_id, None)

    def _publish(self, round_events: list[NamedEvent]) -> None:
        """Send events to all subscribers, and keep them for clients that reconnect."""
        if not round_events:
            return
        self._number += 1
        round_ = _encode(round_events, self._position)
        if len(round_) > _MOST_BYTES:
            round_ = self._resync(TOO_MANY_CHANGES)
        else:
            self.sent += len(round_events)
            self.resyncs += round_events[0][0] == "resync"
        self._keep(round_)
        for subscriber in self._subscribers:
            if not subscriber.put(round_):
                subscriber.replace(self._resync(_SLOW))

    def _keep(self, round_: bytes) -> None:
        self._rounds.append(round_)
        self._kept_bytes += len(round_)
        while self._kept_bytes > _MOST_BYTES:
            self._kept_bytes -= len(self._rounds.popleft())

    def _skip(self) -> None:
        """Count a round without subscribers. Clients that reconnect get a resync."""
        self._number += 1
        self._rounds.clear()
        self._kept_bytes = 0
        self._pending = PendingChanges()
        self._known.clear()

    @property
    def _position(self) -> bytes:
        return f"{self._run_id}-{self._number}".encode()

    def _resync(self, why: str) -> bytes:
        """Return a resync for all kinds of events."""
        self.resyncs += 1
        return _encode([("resync", Resync(of=list(EVENT_KINDS), why=why))], self._position)

    def _greeting(self, after: str | None) -> bytes:
        """Return the first message to a new subscriber: the missed events and the current position."""
        missed = [] if after is None else self._rounds_after(after)
        retry = b"retry: %d\n" % random.randint(*_RECONNECT_MILLISECONDS)  # noqa: S311 - spreads load
        if missed is None:
            return retry + self._resync(_NOT_KEPT)
        return retry + (b"".join(missed) or b"id: %s\n\n" % self._position)

    def _rounds_after(self, position: str) -> list[bytes] | None:
        """Return the rounds after a position, or None if not all are kept or the position is invalid."""
        run_id, _, number = position.rpartition("-")
        if run_id != self._run_id or not (number.isascii() and number.isdecimal() and len(number) < 16):
            return None
        count = self._number - int(number)
        if not 0 <= count <= len(self._rounds):
            return None
        return list(self._rounds)[len(self._rounds) - count :]


def _encode(round_events: list[NamedEvent], position: bytes) -> bytes:
    """Encode events. Only the last one has the position, so a client never resumes within a round."""
    parts = [b"event: %s\ndata: %s\n\n" % (kind.encode(), _json(event)) for kind, event in round_events]
    parts[-1] = b"id: %s\n%s" % (position, parts[-1])
    return b"".join(parts)


_json = msgspec.json.Encoder().encode
