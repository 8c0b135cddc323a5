"""The feed: what it keeps, and what it looks at, is bounded, and nobody is told too little."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.background import event_stream as feeds
from broker.background.changes import KINDS, MOST_IDS, PendingChanges
from broker.background.event_stream import EventStream
from broker.schemas.overview import TaskEvent
from broker.wake.listener import EVENTS, TASK, TOOL, WORK
from broker.wake.waiters import Waiter


@given(
    st.lists(st.one_of(st.integers(1, 60), st.just(None)), max_size=40),
    st.integers(0, 45),
    st.sampled_from([2_000, 10_000]),
)
def test_who_comes_back_is_told_exactly_what_came_since_or_to_read_anew(
    rounds: list[int | None], place: int, most: int
) -> None:
    """Each round has so many events; None: something happened that nobody was told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "_MOST_BYTES", most)
        feed = EventStream(None)  # type: ignore[arg-type]
        told: list[bytes | None] = []
        positions = [feed._position.decode()]
        for count in rounds:
            if count is None:
                feed._skip()
                told.append(None)
            else:
                feed._publish([("task", TaskEvent(id="x", state="available", priority=0, attempt=0))] * count)
                told.append(feed._rounds[-1])
            positions.append(feed._position.decode())
        place = min(place, len(rounds))
        greeting = feed._greeting(positions[place]).partition(b"\n")[2]
        since = told[place:]
        if b'"why":"The events after' in greeting:
            assert None in since or sum(len(each) for each in since if each) > most
        else:
            assert greeting == (b"".join(since) or f"id: {positions[-1]}\n\n".encode())
        assert sum(map(len, feed._rounds)) == feed._kept_bytes <= most


@given(st.lists(st.tuples(st.sampled_from([TASK, TOOL, WORK, "task", "tool", "work"]), st.integers(1, 300))))
def test_what_is_to_be_looked_at_is_bounded_and_what_is_not_is_missed(heard: list[tuple[str, int]]) -> None:
    hints = PendingChanges()
    asked: dict[str, set[str]] = {"task": set(), "tool": set(), "work": set()}
    for place, (source, count) in enumerate(heard):
        ids = [f"{place}-{number}" for number in range(count)]
        hints.add(source, ",".join(ids))
        asked[KINDS[source]].update(ids)
    for kind, ids in hints.ids.items():
        assert len(ids) <= MOST_IDS
        assert ids == asked[kind] or kind in hints.missed


async def test_a_notification_from_elsewhere_is_none_of_its_business() -> None:
    feed = EventStream(None)  # type: ignore[arg-type]
    with feed.subscribe(Waiter(), None) as watcher:
        watcher.pop_all()
        for channel, payload in (
            ("broker_upkeep", "tasks"),
            (EVENTS, ""),
            (EVENTS, "weather fine"),
            (EVENTS, "*"),
        ):
            feed.receive(channel, payload)
        assert not watcher.is_ready
        assert not feed._has_pending.is_set()
