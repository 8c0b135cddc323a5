"""Rounds: compare their pairings with the best ones that an exhaustive search finds."""

import time
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.matching import round as module
from broker.matching.matcher import Matcher
from tests.matching.candidates import paired, pairings, task, tool

KINDS = range(4)


class Case(NamedTuple):
    """Tasks and tools for one round.

    Args:
        tasks: The tasks, most urgent first. Each is a list of the kinds of tools that match it.
        tools: The kind and the free capacity of each tool.
        ranks: The ranks of kinds for needs.
    """

    tasks: list[list[int]]
    tools: list[tuple[int, int]]
    ranks: dict[str, int]

    def match(self, skills: Any, needs: Any) -> bool:
        return skills in needs

    def rank(self, skills: Any, needs: Any) -> float:
        return self.ranks[f"{needs} {skills}"]

    def matcher(self, *, ranked: bool) -> Matcher:
        matcher = Matcher(self.match, self.rank if ranked else None)
        for number, needs in enumerate(self.tasks):
            matcher.add_task(task(f"task-{number}", needs, at=number))
        for number, (kind, room) in enumerate(self.tools):
            matcher.add_tool(tool(f"tool-{number}", kind, capacity=room))
        return matcher


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kind = st.integers(0, KINDS[-1])
    # Few different needs, so that many tasks share theirs.
    needs = draw(st.lists(st.lists(kind, unique=True, max_size=3), min_size=1, max_size=4))
    tasks = draw(st.lists(st.sampled_from(needs), max_size=7))
    tools = draw(st.lists(st.tuples(kind, st.integers(1, 2)), max_size=5))
    ranks = {f"{each} {number}": draw(st.integers(0, 2)) for each in needs for number in KINDS}
    return Case(tasks, tools, ranks)


def best(case: Case) -> tuple[int, ...]:
    """Return 1 or 0 for each task in the best of all pairings, in which earlier tasks always go first."""

    @lru_cache(None)
    def of(number: int, room: tuple[int, ...]) -> tuple[int, ...]:
        if number == len(case.tasks):
            return ()
        ways = [(0, *of(number + 1, room))]
        for index, (kind, _) in enumerate(case.tools):
            if kind in case.tasks[number] and room[index]:
                left = (*room[:index], room[index] - 1, *room[index + 1 :])
                ways.append((1, *of(number + 1, left)))
        return max(ways)

    return of(0, tuple(room for _, room in case.tools))


def most(case: Case) -> int:
    """Return the maximum number of tasks that can have a tool at once."""

    @lru_cache(None)
    def of(number: int, room: tuple[int, ...]) -> int:
        if number == len(case.tasks):
            return 0
        count = of(number + 1, room)
        for index, (kind, _) in enumerate(case.tools):
            if kind in case.tasks[number] and room[index]:
                left = (*room[:index], room[index] - 1, *room[index + 1 :])
                count = max(count, 1 + of(number + 1, left))
        return count

    return of(0, tuple(room for _, room in case.tools))


@settings(deadline=None, max_examples=300)
@given(cases(), st.booleans(), st.sampled_from([0, 1, 1_000]))
def test_no_other_pairing_serves_more_tasks_or_more_urgent_tasks(
    case: Case, ranked: bool, ahead: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_JUDGED_AHEAD", ahead)
        pairs = paired(case.matcher(ranked=ranked))
    served = tuple(int(f"task-{number}" in pairs) for number in range(len(case.tasks)))
    assert served == best(case)
    assert sum(served) == most(case)


@settings(deadline=None, max_examples=200)
@given(cases(), st.booleans())
def test_every_pair_matches_and_no_tool_exceeds_its_capacity(case: Case, ranked: bool) -> None:
    placed = pairings(case.matcher(ranked=ranked))
    assert len({pairing.task.id for pairing in placed}) == len(placed)
    loads = Counter(pairing.tool.id for pairing in placed)
    for number, (_, room) in enumerate(case.tools):
        assert loads[f"tool-{number}"] <= room
    for pairing in placed:
        needs = case.tasks[int(pairing.task.id.removeprefix("task-"))]
        kind, _ = case.tools[int(pairing.tool.id.removeprefix("tool-"))]
        assert kind in needs


@settings(deadline=None, max_examples=200)
@given(cases())
def test_no_task_prefers_a_tool_that_still_has_free_capacity(case: Case) -> None:
    pairs = paired(case.matcher(ranked=True))
    loads = Counter(pairs.values())
    free = {kind for number, (kind, room) in enumerate(case.tools) if loads[f"tool-{number}"] < room}
    for task_id, tool_id in pairs.items():
        needs = case.tasks[int(task_id.removeprefix("task-"))]
        got, _ = case.tools[int(tool_id.removeprefix("tool-"))]
        better = [kind for kind in free if kind in needs and case.rank(kind, needs) > case.rank(got, needs)]
        assert not better


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans())
def test_a_second_round_finds_no_further_pair(case: Case, ranked: bool) -> None:
    matcher = case.matcher(ranked=ranked)
    paired(matcher)
    assert paired(matcher) == {}


def pair_kinds(matcher: Matcher, tasks: dict[str, list[int]], tools: dict[str, int]) -> dict[str, str]:
    """Pair tasks, each with the kinds of tools that match it, with tools of these kinds."""
    for number, (id_, needs) in enumerate(tasks.items()):
        matcher.add_task(task(id_, needs, at=number))
    for id_, kind in tools.items():
        matcher.add_tool(tool(id_, kind))
    return paired(matcher)


def one_of(skills: Any, needs: Any) -> bool:
    return skills in needs


def test_a_task_is_moved_to_give_another_task_a_tool() -> None:
    tasks = {"a": [1, 2], "b": [1], "c": [1, 2], "d": [1, 2, 3]}
    pairs = pair_kinds(Matcher(one_of), tasks, {"t1": 1, "t2": 2, "t3": 3})
    assert pairs == {"a": "t2", "b": "t1", "d": "t3"}


def test_many_tasks_are_moved_along_a_chain() -> None:
    length = 30
    tasks = {f"task-{number}": [number, number + 1] for number in range(length)} | {"last": [0]}
    tools = {f"tool-{number}": number for number in range(length + 1)}
    matcher = Matcher(one_of, lambda skills, needs: -skills)
    assert len(pair_kinds(matcher, tasks, tools)) == length + 1


def test_a_tool_with_rare_skills_is_kept_for_the_tasks_that_need_them() -> None:
    matcher = Matcher()
    for needs in ("print", "scan", "fax"):
        matcher.add_task(task(needs, {"can": needs}))
    # The matcher remembers these needs.
    assert paired(matcher) == {}
    matcher.add_tool(tool("anything", {"can": ["print", "scan", "fax"]}, capacity=9))
    matcher.add_tool(tool("printer", {"can": ["print"]}))
    pairs = paired(matcher)
    assert pairs["print"] == "printer"
    matcher.add_tool(tool("anything", {"can": ["print", "scan", "fax"]}, capacity=9))
    matcher.add_tool(tool("printer", {"can": ["print"]}))
    matcher.add_task(task("alone", {"can": "print"}))
    assert paired(matcher) == {"alone": "printer"}


def test_work_is_spread_over_the_tools_with_the_most_free_capacity() -> None:
    matcher = Matcher()
    matcher.add_tool(tool("small", {}, capacity=2))
    matcher.add_tool(tool("large", {}, capacity=4))
    for number in range(4):
        matcher.add_task(task(f"task-{number}", {}, at=number))
    assert Counter(paired(matcher).values()) == {"large": 3, "small": 1}


def test_the_tool_that_has_waited_longest_goes_first_among_equal_tools() -> None:
    matcher = Matcher()
    for id_ in ("x", "b", "a"):
        matcher.add_tool(tool(id_, {}))
    matcher.add_task(task("first", {}))
    assert paired(matcher) == {"first": "x"}


def test_the_first_of_equal_tasks_gets_the_tool_with_the_highest_rank() -> None:
    matcher = Matcher(lambda skills, needs: True, lambda skills, needs: skills["speed"])
    for number in range(3):
        matcher.add_task(task(f"task-{number}", {}, at=number))
    for id_, speed in (("slow", 1), ("fast", 3), ("middling", 2)):
        matcher.add_tool(tool(id_, {"speed": speed}))
    assert paired(matcher) == {"task-0": "fast", "task-1": "middling", "task-2": "slow"}


def test_infinity_is_a_valid_rank() -> None:
    matcher = Matcher(lambda skills, needs: True, lambda skills, needs: float(skills))
    matcher.add_task(task("a"))
    for id_, rank in (("worst", "-inf"), ("best", "inf"), ("good", "5")):
        matcher.add_tool(tool(id_, rank))
    assert paired(matcher) == {"a": "best"}


def test_a_failed_search_is_not_repeated_in_the_same_round() -> None:
    matcher = Matcher(one_of)
    for number in range(6_000):
        matcher.add_task(task(str(number), [1, 2, number + 10], at=number))
    matcher.add_tool(tool("needed by all", 1, capacity=500))
    matcher.add_tool(tool("also needed by all", 2, capacity=500))
    matcher.add_tool(tool("needed by none", 3))
    round_ = matcher.round()
    steps = iter(round_.steps())
    for _ in range(3 * 1_000):
        next(steps)
    began = time.process_time()
    for _ in steps:
        pass
    assert len(round_.pairings()) == 1_000
    assert time.process_time() - began < 0.5
