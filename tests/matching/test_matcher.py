"""The matcher: equal needs are judged once, turns are kept, and what is gone is forgotten."""

import gc
import json
import logging
import sys
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from broker.matching import interning
from broker.matching.matcher import Matcher
from broker.matching.mismatch import MismatchError
from tests.matching.candidates import paired, pairings, task, tool


class Asked:
    """A function that judges, and counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, skills: Any, needs: Any) -> bool:
        self.times += 1
        return bool(skills == needs)


def spelled(text: str) -> Any:
    offered = task(text)
    offered.needs = Raw(text.encode())
    return offered


def test_equal_needs_are_judged_once_however_they_are_written() -> None:
    asked = Asked()
    matcher = Matcher(asked)
    for text in ('{"a": 1, "b": [true]}', '{"b":[true],"a":1}', ' {"a" :1, "b": [ true ]}'):
        matcher.add_task(spelled(text))
    for number in range(2):
        matcher.add_tool(tool(f"tool-{number}", {"a": 1, "b": [True]}))
    assert len(paired(matcher)) == 2
    assert asked.times == 1


def test_true_is_not_one() -> None:
    matcher = Matcher()
    for needs in (True, 1):
        matcher.add_task(task(f"needs-{needs}", needs))
    matcher.add_tool(tool("one", 1))
    matcher.add_tool(tool("true", True))
    assert paired(matcher) == {"needs-True": "true", "needs-1": "one"}


def test_what_was_judged_is_remembered_when_the_same_needs_come_again() -> None:
    asked = Asked()
    matcher = Matcher(asked)
    for number in range(5):
        matcher.add_tool(tool("t", "print"))
        matcher.add_task(task(f"task-{number}", "print"))
        assert len(paired(matcher)) == 1
    assert asked.times == 1


def test_a_function_may_change_what_it_is_given() -> None:
    def match(skills: Any, needs: Any) -> bool:
        return bool(skills.pop("can") == needs.pop("can"))

    matcher = Matcher(match, lambda skills, needs: len(skills) + len(needs))
    matcher.add_task(task("a", {"can": "print"}))
    matcher.add_tool(tool("scanner", {"can": "scan"}))
    matcher.add_tool(tool("printer", {"can": "print"}))
    assert paired(matcher) == {"a": "printer"}


def test_what_cannot_be_judged_is_no_match_and_is_logged_once_for_each_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    matcher = Matcher(lambda skills, needs: needs["can"] in skills["can"])
    for number in range(3):
        matcher.add_task(task(f"odd-{number}", {"what": "ever"}, at=number))
        matcher.add_tool(tool(f"tool-{number}", {"can": ["count"], "number": number}))
    matcher.add_task(task("even", {"can": "count"}))
    assert set(paired(matcher)) == {"even"}
    [told] = [record.message for record in caplog.records]
    assert told == "task odd-0 cannot be matched with tool tool-0: KeyError('can')"


@pytest.mark.parametrize("rank", [lambda skills, needs: 1 / 0, lambda skills, needs: float("nan")])
def test_what_cannot_be_ranked_is_no_match(rank: Any, caplog: pytest.LogCaptureFixture) -> None:
    matcher = Matcher("contains", rank)
    matcher.add_task(task("a"))
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {}
    assert len(caplog.records) == 1


def test_a_mismatch_is_a_plain_no(caplog: pytest.LogCaptureFixture) -> None:
    def match(skills: Any, needs: Any) -> bool:
        raise MismatchError("wants 2 GPUs, has 1")

    matcher = Matcher(match)
    matcher.add_task(task("a"))
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {}
    assert not caplog.records


@pytest.mark.parametrize("text", ["1e400", "[" * 5_000 + "]" * 5_000])
def test_needs_and_skills_that_python_cannot_read_match_nothing(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    matcher = Matcher()
    matcher.add_task(spelled(text))
    matcher.add_task(task("fine", {}))
    odd = tool("odd")
    odd.skills = Raw(text.encode())
    matcher.add_tool(odd)
    matcher.add_tool(tool("fine", {}))
    assert paired(matcher) == {"fine": "fine"}
    assert len(caplog.records) == 2


async def never(skills: Any, needs: Any) -> bool:
    return True


@pytest.mark.parametrize("match", [never, 5, None])
def test_what_is_no_ordinary_function_is_refused(match: Any) -> None:
    with pytest.raises(TypeError, match="match has to be"):
        Matcher(match)


def test_a_strategy_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no strategy 'magic'; there are contains and schema"):
        Matcher("magic")


def test_strategies_are_found_by_their_names() -> None:
    for name, needs in (("contains", {"gpu": 2}), ("schema", {"properties": {"gpu": {"minimum": 1}}})):
        matcher = Matcher(name)
        matcher.add_task(task("a", needs))
        matcher.add_tool(tool("t", {"gpu": 2}))
        assert paired(matcher) == {"a": "t"}


def order(matcher: Matcher) -> list[str]:
    """The order in which tasks that need the same have their turn."""
    matcher.add_tool(tool("t", capacity=100))
    return [pairing.task.id for pairing in pairings(matcher)]


def test_higher_priority_goes_first_then_the_older_one_then_the_one_heard_of_first() -> None:
    matcher = Matcher(aging_seconds=None)
    matcher.add_task(task("late", at=2))
    matcher.add_task(task("early", at=1))
    matcher.add_task(task("early, too", at=1))
    matcher.add_task(task("urgent", at=10_000_000, priority=1))
    assert order(matcher) == ["urgent", "early", "early, too", "late"]


def test_a_task_that_has_waited_long_enough_counts_as_one_priority_higher() -> None:
    matcher = Matcher(aging_seconds=60)
    matcher.add_task(task("old", at=0))
    matcher.add_task(task("soon after", at=59, priority=1))
    matcher.add_task(task("much later", at=61, priority=1))
    matcher.add_task(task("urgent", at=100, priority=2))
    assert order(matcher) == ["urgent", "soon after", "old", "much later"]


@given(st.lists(st.tuples(st.integers(-32768, 32767), st.integers(0, 10_000_000)), max_size=8))
def test_strictly_priority_goes_before_age(tasks: list[tuple[int, int]]) -> None:
    matcher = Matcher(aging_seconds=None)
    for number, (priority, at) in enumerate(tasks):
        matcher.add_task(task(str(number), priority=priority, at=at))
    expected = sorted(range(len(tasks)), key=lambda number: (-tasks[number][0], tasks[number][1], number))
    assert order(matcher) == [str(number) for number in expected]


def test_a_task_that_is_told_again_is_the_same_task() -> None:
    matcher = Matcher()
    for needs in ("scan", "print"):
        matcher.add_task(task("a", needs))
    for id_ in ("x", "y"):
        matcher.add_tool(tool(id_, "print"))
    assert len(paired(matcher)) == 1


def test_a_tool_that_is_told_again_has_the_skills_and_the_room_that_it_has_now() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t", "scan", capacity=10))
    matcher.add_tool(tool("t", "print", capacity=3, load=2))
    for number in range(2):
        matcher.add_task(task(f"print-{number}", "print"))
        matcher.add_task(task(f"scan-{number}", "scan"))
    assert len(paired(matcher)) == 1
    assert paired(matcher) == {}


def test_a_task_that_others_took_is_forgotten_and_the_tool_is_given_another_one() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    for number in range(2):
        matcher.add_task(task(f"task-{number}", at=number))
    [pairing] = pairings(matcher)
    matcher.settle(pairing, "task_unavailable")
    assert paired(matcher) == {"task-1": "t"}


def test_a_tool_that_has_no_room_any_more_gets_nothing_until_it_is_heard_of_again() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    matcher.add_task(task("a"))
    [pairing] = pairings(matcher)
    matcher.settle(pairing, "tool_unavailable")
    assert paired(matcher) == {}
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {"a": "t"}


def test_a_tool_that_is_told_with_no_room_gets_nothing() -> None:
    matcher = Matcher()
    matcher.add_task(task("a"))
    for load in (1, 2):
        matcher.add_tool(tool("t"))
        matcher.add_tool(tool("t", load=load))
        assert paired(matcher) == {}


def test_what_was_not_met_when_everything_was_read_anew_is_forgotten() -> None:
    matcher = Matcher()
    for id_ in ("kept", "gone"):
        matcher.add_task(task(id_))
        matcher.add_tool(tool(id_))
    arrivals = matcher.arrivals
    matcher.add_task(task("new"))
    matcher.add_tool(tool("new"))
    matcher.keep_only({"kept"}, {"kept"}, arrivals=arrivals)
    assert paired(matcher) == {"kept": "kept", "new": "new"}


def test_what_is_forgotten_while_it_is_being_assigned_does_not_come_back() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    matcher.add_task(task("a"))
    [pairing] = pairings(matcher)
    matcher.keep_only(set(), set(), arrivals=matcher.arrivals)
    matcher.settle(pairing, "tool_unavailable")
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {}
    assert not list(matcher.waiting)


def used(matcher: Matcher, kinds: range) -> None:
    """Tasks and tools of many kinds come and go."""
    for number in kinds:
        matcher.add_task(task(f"task-{number}", {"can": [f"skill-{number}", "x" * 200]}))
        matcher.add_tool(tool(f"tool-{number}", {"can": [f"skill-{number}", "x" * 200]}))
        assert len(paired(matcher)) == 1


def test_memory_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 20)
    matcher = Matcher()
    tracemalloc.start()
    try:
        used(matcher, range(600))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        used(matcher, range(600, 1_500))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert len(matcher.needs) <= 21
    assert len(matcher.skills) <= 21


def test_kinds_that_were_forgotten_are_judged_anew_and_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 2)
    matcher = Matcher("contains", lambda skills, needs: 1.0)
    matcher.add_task(task("waits", {"can": "skill-0"}))
    for number in range(1, 50):
        matcher.add_tool(tool("t", {"can": f"skill-{number}"}))
        assert paired(matcher) == {}
    # Its number among the kinds was another one's before.
    matcher.add_tool(tool("t", {"can": "skill-0"}))
    assert paired(matcher) == {"waits": "t"}


def test_needs_that_were_forgotten_want_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 2)
    matcher = Matcher()
    for number in range(20):
        matcher.add_tool(tool("old", {"can": ["print", *range(20)]}))
        matcher.add_task(task("a", {"can": number}))
        assert len(paired(matcher)) == 1
    for needs in ({"can": ["print", "scan"]}, {"can": ["scan"]}, {"can": "print"}):
        matcher.add_tool(tool("old", {"can": ["print", *range(20)]}))
        matcher.add_tool(tool("new", {"can": ["print", "scan"]}))
        matcher.add_task(task("b", needs))
        found = paired(matcher)
    assert found == {"b": "old"}


def test_payloads_and_other_ways_to_write_the_same_are_not_kept() -> None:
    matcher = Matcher()
    for number in range(100):
        text = " " * number + json.dumps({"can": "print"})
        offered = spelled(text)
        offered.id = f"task-{number}"
        matcher.add_task(offered)
    [needs] = matcher.waiting
    assert len(needs.queue) == 100
    assert len(matcher.needs._by_spelling) < 10
    task_ = needs.queue.head()
    assert task_ is not None
    assert sys.getsizeof(task_) < 200


def test_a_hundred_thousand_tasks_are_paired_in_a_moment() -> None:
    """Ten times what it takes on an ordinary machine."""
    matcher = Matcher()
    offered = [
        task(f"task-{number}", {"can": f"skill-{number % 50}"}, at=number) for number in range(100_000)
    ]
    tools = [tool(f"t-{n}", {"can": [f"skill-{n % 30 + k}" for k in range(9)]}) for n in range(1_000)]
    began = time.process_time()
    for each in offered:
        matcher.add_task(each)
    for tool_ in tools:
        matcher.add_tool(tool_)
    assert len(paired(matcher)) == 1_000
    assert time.process_time() - began < 3
    began = time.process_time()
    for tool_ in tools[:100]:
        matcher.add_tool(tool_)
        assert len(paired(matcher)) == 1
    assert time.process_time() - began < 1
