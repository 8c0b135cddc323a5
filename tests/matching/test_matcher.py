"""The matcher: judgements are shared, the order is kept, and old tasks and tools are forgotten."""

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


class CountingMatch:
    """A match function that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, skills: Any, needs: Any) -> bool:
        self.calls += 1
        return bool(skills == needs)


def spelled(text: str) -> Any:
    offered = task(text)
    offered.needs = Raw(text.encode())
    return offered


def test_equal_needs_in_different_spellings_are_judged_once() -> None:
    match = CountingMatch()
    matcher = Matcher(match)
    for text in ('{"a": 1, "b": [true]}', '{"b":[true],"a":1}', ' {"a" :1, "b": [ true ]}'):
        matcher.add_task(spelled(text))
    for number in range(2):
        matcher.add_tool(tool(f"tool-{number}", {"a": 1, "b": [True]}))
    assert len(paired(matcher)) == 2
    assert match.calls == 1


def test_true_does_not_equal_one() -> None:
    matcher = Matcher()
    for needs in (True, 1):
        matcher.add_task(task(f"needs-{needs}", needs))
    matcher.add_tool(tool("one", 1))
    matcher.add_tool(tool("true", True))
    assert paired(matcher) == {"needs-True": "true", "needs-1": "one"}


def test_judgements_are_remembered_when_the_same_needs_return() -> None:
    match = CountingMatch()
    matcher = Matcher(match)
    for number in range(5):
        matcher.add_tool(tool("t", "print"))
        matcher.add_task(task(f"task-{number}", "print"))
        assert len(paired(matcher)) == 1
    assert match.calls == 1


def test_a_match_function_may_change_its_arguments() -> None:
    def match(skills: Any, needs: Any) -> bool:
        return bool(skills.pop("can") == needs.pop("can"))

    matcher = Matcher(match, lambda skills, needs: len(skills) + len(needs))
    matcher.add_task(task("a", {"can": "print"}))
    matcher.add_tool(tool("scanner", {"can": "scan"}))
    matcher.add_tool(tool("printer", {"can": "print"}))
    assert paired(matcher) == {"a": "printer"}


def test_needs_that_cannot_be_judged_match_nothing_and_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    matcher = Matcher(lambda skills, needs: needs["can"] in skills["can"])
    for number in range(3):
        matcher.add_task(task(f"odd-{number}", {"what": "ever"}, at=number))
        matcher.add_tool(tool(f"tool-{number}", {"can": ["count"], "number": number}))
    matcher.add_task(task("even", {"can": "count"}))
    assert set(paired(matcher)) == {"even"}
    [message] = [record.message for record in caplog.records]
    assert message == "task odd-0 could not be compared with tool tool-0: KeyError('can')"


@pytest.mark.parametrize("rank", [lambda skills, needs: 1 / 0, lambda skills, needs: float("nan")])
def test_a_pair_that_cannot_be_ranked_is_no_match(rank: Any, caplog: pytest.LogCaptureFixture) -> None:
    matcher = Matcher("contains", rank)
    matcher.add_task(task("a"))
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {}
    assert len(caplog.records) == 1


def test_a_mismatch_error_is_no_match_and_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
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
def test_a_match_that_is_not_an_ordinary_function_is_refused(match: Any) -> None:
    with pytest.raises(TypeError, match="match must be"):
        Matcher(match)


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'magic'; the strategies are contains and schema"):
        Matcher("magic")


def test_strategies_are_found_by_their_names() -> None:
    for name, needs in (("contains", {"gpu": 2}), ("schema", {"properties": {"gpu": {"minimum": 1}}})):
        matcher = Matcher(name)
        matcher.add_task(task("a", needs))
        matcher.add_tool(tool("t", {"gpu": 2}))
        assert paired(matcher) == {"a": "t"}


def order(matcher: Matcher) -> list[str]:
    """Return the order in which tasks with equal needs are assigned."""
    matcher.add_tool(tool("t", capacity=100))
    return [pairing.task.id for pairing in pairings(matcher)]


def test_tasks_are_ordered_by_priority_then_age_then_arrival() -> None:
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
def test_priority_always_goes_before_age_without_aging(tasks: list[tuple[int, int]]) -> None:
    matcher = Matcher(aging_seconds=None)
    for number, (priority, at) in enumerate(tasks):
        matcher.add_task(task(str(number), priority=priority, at=at))
    expected = sorted(range(len(tasks)), key=lambda number: (-tasks[number][0], tasks[number][1], number))
    assert order(matcher) == [str(number) for number in expected]


def test_a_task_that_is_added_again_replaces_itself() -> None:
    matcher = Matcher()
    for needs in ("scan", "print"):
        matcher.add_task(task("a", needs))
    for id_ in ("x", "y"):
        matcher.add_tool(tool(id_, "print"))
    assert len(paired(matcher)) == 1


def test_a_tool_that_is_added_again_has_its_new_skills_and_capacity() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t", "scan", capacity=10))
    matcher.add_tool(tool("t", "print", capacity=3, load=2))
    for number in range(2):
        matcher.add_task(task(f"print-{number}", "print"))
        matcher.add_task(task(f"scan-{number}", "scan"))
    assert len(paired(matcher)) == 1
    assert paired(matcher) == {}


def test_an_unavailable_task_is_forgotten_and_its_tool_gets_another_one() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    for number in range(2):
        matcher.add_task(task(f"task-{number}", at=number))
    [pairing] = pairings(matcher)
    matcher.settle(pairing, "task_unavailable")
    assert paired(matcher) == {"task-1": "t"}


def test_an_unavailable_tool_gets_no_task_until_it_is_added_again() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    matcher.add_task(task("a"))
    [pairing] = pairings(matcher)
    matcher.settle(pairing, "tool_unavailable")
    assert paired(matcher) == {}
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {"a": "t"}


def test_a_tool_without_free_capacity_gets_no_task() -> None:
    matcher = Matcher()
    matcher.add_task(task("a"))
    for load in (1, 2):
        matcher.add_tool(tool("t"))
        matcher.add_tool(tool("t", load=load))
        assert paired(matcher) == {}


def test_candidates_that_are_missing_after_a_reread_are_forgotten() -> None:
    matcher = Matcher()
    for id_ in ("kept", "gone"):
        matcher.add_task(task(id_))
        matcher.add_tool(tool(id_))
    arrivals = matcher.arrivals
    matcher.add_task(task("new"))
    matcher.add_tool(tool("new"))
    matcher.keep_only({"kept"}, {"kept"}, arrivals=arrivals)
    assert paired(matcher) == {"kept": "kept", "new": "new"}


def test_a_task_that_is_forgotten_during_its_assignment_does_not_return() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("t"))
    matcher.add_task(task("a"))
    [pairing] = pairings(matcher)
    matcher.keep_only(set(), set(), arrivals=matcher.arrivals)
    matcher.settle(pairing, "tool_unavailable")
    matcher.add_tool(tool("t"))
    assert paired(matcher) == {}
    assert not list(matcher.waiting)


def use(matcher: Matcher, numbers: range) -> None:
    """Add and assign tasks with many different needs and skills."""
    for number in numbers:
        matcher.add_task(task(f"task-{number}", {"can": [f"skill-{number}", "x" * 200]}))
        matcher.add_tool(tool(f"tool-{number}", {"can": [f"skill-{number}", "x" * 200]}))
        assert len(paired(matcher)) == 1


def test_memory_does_not_grow_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 20)
    matcher = Matcher()
    tracemalloc.start()
    try:
        use(matcher, range(600))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(matcher, range(600, 1_500))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert len(matcher.needs) <= 21
    assert len(matcher.skills) <= 21


def test_forgotten_needs_and_skills_are_judged_again_correctly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 2)
    matcher = Matcher("contains", lambda skills, needs: 1.0)
    matcher.add_task(task("waits", {"can": "skill-0"}))
    for number in range(1, 50):
        matcher.add_tool(tool("t", {"can": f"skill-{number}"}))
        assert paired(matcher) == {}
    # Other skills had the same index before.
    matcher.add_tool(tool("t", {"can": "skill-0"}))
    assert paired(matcher) == {"waits": "t"}


def test_forgotten_needs_no_longer_count_as_demand_for_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
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
        pairs = paired(matcher)
    assert pairs == {"b": "old"}


def test_the_matcher_keeps_neither_payloads_nor_many_spellings() -> None:
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


def test_a_hundred_thousand_tasks_are_paired_quickly() -> None:
    """The limits are ten times the usual duration on an ordinary machine."""
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
