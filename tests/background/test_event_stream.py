"""The event stream: the events that it keeps and reads are bounded, and no subscriber misses events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.background import event_stream
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
def test_a_reconnecting_subscriber_gets_exactly_the_missed_events_or_a_resync(
    rounds: list[int | None], place: int, most: int
) -> None:
    """Publish rounds with these numbers of events. None is a change while there is no subscriber."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_stream, "_MOST_BYTES", most)
        stream = EventStream(None)  # type: ignore[arg-type]
        published: list[bytes | None] = []
        positions = [stream._position.decode()]
        for count in rounds:
            if count is None:
                stream._skip()
                published.append(None)
            else:
                event = TaskEvent(id="x", state="available", priority=0, attempt=0)
                stream._publish([("task", event)] * count)
                published.append(stream._rounds[-1])
            positions.append(stream._position.decode())
        place = min(place, len(rounds))
        greeting = stream._greeting(positions[place]).partition(b"\n")[2]
        since = published[place:]
        if b'"why":"The events after' in greeting:
            assert None in since or sum(len(each) for each in since if each) > most
        else:
            assert greeting == (b"".join(since) or f"id: {positions[-1]}\n\n".encode())
        assert sum(map(len, stream._rounds)) == stream._kept_bytes <= most


@given(st.lists(st.tuples(st.sampled_from([TASK, TOOL, WORK, "task", "tool", "work"]), st.integers(1, 300))))
def test_pending_ids_are_bounded_and_dropped_ids_mark_their_kind_as_missed(
    notifications: list[tuple[str, int]],
) -> None:
    pending = PendingChanges()
    expected: dict[str, set[str]] = {"task": set(), "tool": set(), "work": set()}
    for place, (source, count) in enumerate(notifications):
        ids = [f"{place}-{number}" for number in range(count)]
        pending.add(source, ",".join(ids))
        expected[KINDS[source]].update(ids)
    for kind, ids in pending.ids.items():
        assert len(ids) <= MOST_IDS
        assert ids == expected[kind] or kind in pending.missed


async def test_the_event_stream_ignores_other_notifications() -> None:
    stream = EventStream(None)  # type: ignore[arg-type]
    with stream.subscribe(Waiter(), None) as subscriber:
        subscriber.pop_all()
        for channel, payload in (
            ("broker_upkeep", "tasks"),
            (EVENTS, ""),
            (EVENTS, "weather fine"),
            (EVENTS, "*"),
        ):
            stream.receive(channel, payload)
        assert not subscriber.is_ready
        assert not stream._has_pending.is_set()
