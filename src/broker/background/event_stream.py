"""The feed: what happens, read once for all who watch, and told to each as fast as they take it.

Notifications are hints here as everywhere: they say where to look, and what is told is what was found there.
Where that would be too much, or something was not heard, whoever watches is told to read anew instead.
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

from broker.background.changes import KINDS, MUCH, PendingChanges
from broker.schemas.overview import EVENT_KINDS, EventKind, Resync
from broker.schemas.states import WorkState
from broker.store import Store, events
from broker.wake.listener import EVENTS
from broker.wake.waiters import Waiter

log = structlog.get_logger(__name__)

# What is written together comes together.
_GATHER_SECONDS = 0.01
# At most one reading in this time, and none for some times as long as the last one took, but not for longer
# than people have patience for: so all who watch keep one connection busy for a part of the time only.
_ROUND_SECONDS = 0.25
_PAUSES_PER_READING = 4
_LONGEST_PAUSE_SECONDS = 2.0
_AGAIN_SECONDS = 1.0

# Of one round, of what is kept of the last ones, and of what waits for one client.
_MOST_BYTES = 256 * 1024
# Of how much work it is remembered in which state it was told.
_MOST_KNOWN = 20_000
# When a browser that has lost its connection comes again; not all in the same moment.
_RETRY_MILLISECONDS = (1_000, 3_000)

_UNHEARD = "For a while nothing could be heard."
_NOT_KEPT = "What you have missed is not kept."
_SLOW = "More has happened than you have taken."

Told: TypeAlias = "tuple[EventKind | Literal['resync'], Struct]"


class Subscriber:
    """One client that watches, and what waits for it.

    Args:
        waiter: Is woken when there is something to take.
        first: What it is told first.
    """

    def __init__(self, waiter: Waiter, first: bytes) -> None:
        self._waiter = waiter
        self._waiting = [first]
        self._bytes = len(first)
        #: Whether it has to be seen at once that the client is still welcome.
        self.in_doubt = False

    @property
    def has_news(self) -> bool:
        """Whether there is something to take, or to be seen to."""
        return self.in_doubt or bool(self._waiting)

    def doubt(self) -> None:
        """See whether the client is still welcome."""
        self.in_doubt = True
        self._waiter.wake()

    def put(self, round_: bytes) -> bool:
        """Have something wait for the client; whether there was room for it."""
        if self._bytes + len(round_) > _MOST_BYTES:
            return False
        self._waiting.append(round_)
        self._bytes += len(round_)
        self._waiter.wake()
        return True

    def put_instead(self, resync: bytes) -> None:
        """Have nothing wait for the client but this."""
        self._waiting, self._bytes = [resync], len(resync)
        self._waiter.wake()

    def take(self) -> bytes:
        """All that waits."""
        taken = b"".join(self._waiting)
        self._waiting, self._bytes = [], 0
        return taken


class EventStream:
    """Tells all who watch what happens, as Server-Sent Events.

    A round is what was read at once; it has a number, by which a client says where it was when it lost its
    connection. The last rounds are kept for those who come back. While nobody watches nothing is read, and it
    is only known whether there was something.

    Args:
        store: The database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: set[Subscriber] = set()
        self._hints = PendingChanges()
        self._news = asyncio.Event()
        self._known: dict[UUID, WorkState] = {}
        self._run_id = secrets.token_hex(4)
        # The number of the last round; the last of those that are kept has it.
        self._number = 0
        self._rounds: deque[bytes] = deque()
        self._kept_bytes = 0
        self._task: asyncio.Task[None] | None = None
        #: How many events were told, each once however many watch, and how often somebody had to read anew.
        self.told = 0
        self.resyncs = 0

    @property
    def watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    @contextlib.contextmanager
    def watched(self, waiter: Waiter, after: str | None) -> Iterator[Subscriber]:
        """Tell somebody what happens, for the length of a `with` block.

        Args:
            waiter: Is woken whenever there is something to take.
            after: Where they were when they lost their connection; None: they have not read anything yet.
        """
        watcher = Subscriber(waiter, self._greeting(after))
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def hear(self, channel: str, payload: str) -> None:
        """This was notified."""
        if channel == EVENTS:
            source, _, payload = payload.partition(" ")
        else:
            source = channel
        if source in KINDS:
            if self._watchers:
                self._hints.add(source, payload)
                self._news.set()
            else:
                self._forget()
        elif source == "key":
            for watcher in self._watchers:
                watcher.doubt()

    def miss(self) -> None:
        """Something may have been notified that was not heard."""
        if self._watchers:
            self._hints.miss(_UNHEARD)
            self._news.set()
        else:
            self._forget()

    def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name="feed")

    async def stop(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._news.clear()
            began = loop.time()
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                log.warning("who watches has to wait", error=repr(error))
                self._news.set()
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                pause = min(_PAUSES_PER_READING * (loop.time() - began), _LONGEST_PAUSE_SECONDS)
                await asyncio.sleep(max(pause, _ROUND_SECONDS))

    async def _round(self) -> None:
        """Read what became of what was heard of, and tell it; if that fails, it is still to be done."""
        hints, self._hints = self._hints, PendingChanges()
        if not self._watchers:
            self._forget()
            return
        ids, missed = hints.ids, hints.missed
        if len(missed) == len(EVENT_KINDS):
            ids = PendingChanges().ids
        try:
            found = await self._store.read(
                events.read,
                tasks=ids["task"],
                tools=ids["tool"],
                work=[UUID(id_) for id_ in ids["work"]],
                known=self._known,
            )
        except BaseException:
            hints.join(self._hints)
            self._hints = hints
            raise
        self._remember(found)
        told: list[Told] = []
        if missed:
            told.append(
                ("resync", Resync(of=[kind for kind in EVENT_KINDS if kind in missed], why=hints.why))
            )
        of_kind: dict[EventKind, Sequence[Struct]] = {
            "task": found.tasks,
            "tool": found.tools,
            "work": found.work,
            "archive": found.records,
        }
        told += [(kind, each) for kind in EVENT_KINDS if kind not in missed for each in of_kind[kind]]
        self._tell(told)

    def _remember(self, found: events.Events) -> None:
        """Know next time which work is new, and which was started."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        for work in found.work:
            self._known[work.id] = work.state
        for record in found.records:
            self._known.pop(record.work_id, None)

    def _tell(self, told: list[Told]) -> None:
        """Tell all who watch, and keep it for who comes back."""
        if not told:
            return
        self._number += 1
        round_ = _encode(told, self._position)
        if len(round_) > _MOST_BYTES:
            round_ = self._resync(MUCH)
        else:
            self.told += len(told)
            self.resyncs += told[0][0] == "resync"
        self._keep(round_)
        for watcher in self._watchers:
            if not watcher.put(round_):
                watcher.put_instead(self._resync(_SLOW))

    def _keep(self, round_: bytes) -> None:
        self._rounds.append(round_)
        self._kept_bytes += len(round_)
        while self._kept_bytes > _MOST_BYTES:
            self._kept_bytes -= len(self._rounds.popleft())

    def _forget(self) -> None:
        """Something was not read, and nobody was there to be told; who comes back is."""
        self._number += 1
        self._rounds.clear()
        self._kept_bytes = 0
        self._hints = PendingChanges()
        self._known.clear()

    @property
    def _position(self) -> bytes:
        return f"{self._run_id}-{self._number}".encode()

    def _resync(self, why: str) -> bytes:
        """What tells a client to read everything anew."""
        self.resyncs += 1
        return _encode([("resync", Resync(of=list(EVENT_KINDS), why=why))], self._position)

    def _greeting(self, after: str | None) -> bytes:
        """What a client is told first: what it has missed, and where it is."""
        missed = [] if after is None else self._since(after)
        retry = b"retry: %d\n" % random.randint(*_RETRY_MILLISECONDS)  # noqa: S311 - spreads load
        if missed is None:
            return retry + self._resync(_NOT_KEPT)
        if missed:
            return retry + b"".join(missed)
        return retry + b"id: %s\n\n" % self._position

    def _since(self, position: str) -> list[bytes] | None:
        """The rounds after one; None: some of them are not kept, or there was no such round."""
        run_id, _, number = position.rpartition("-")
        if run_id != self._run_id or not (number.isascii() and number.isdecimal() and len(number) < 16):
            return None
        count = self._number - int(number)
        if not 0 <= count <= len(self._rounds):
            return None
        return list(self._rounds)[len(self._rounds) - count :]


def _encode(told: list[Told], position: bytes) -> bytes:
    """Events as they are sent; only by the last of them a client is past all of them."""
    parts = [b"event: %s\ndata: %s\n\n" % (kind.encode(), _json(event)) for kind, event in told]
    parts[-1] = b"id: %s\n%s" % (position, parts[-1])
    return b"".join(parts)


_json = msgspec.json.Encoder().encode
