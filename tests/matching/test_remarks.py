"""Remarks: what tasks are told about why they wait, and how often."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.matching import interning
from broker.matching import remarks as module
from broker.matching.candidates import ListedTool
from broker.matching.matcher import Matcher
from broker.matching.mismatch import MismatchError, gap
from broker.matching.remarks import Remarks
from broker.matching.strategies import Match
from tests.matching.candidates import paired, registered, task, tool


class Desk:
    """Remarks with a clock of the test's own, and what the tasks were told."""

    def __init__(self, match: Match | str = "contains") -> None:
        self.now = 0.0
        self.matcher = Matcher(match, clock=lambda: self.now)
        self.remarks = Remarks(self.matcher, after_seconds=2, recheck_seconds=10)
        self.writes = 0

    def say(self, *tools: ListedTool) -> dict[str, str]:
        """Look at what is due, and make the remarks."""
        for _ in self.remarks.check(tools):
            pass
        said = self.remarks.new_remarks()
        for each in said:
            each.task.remark = each.text
        self.writes += len(said)
        return {each.task.id: each.text for each in said}


def why(needs: Any, tools: Sequence[ListedTool], match: Match | str = "contains") -> str:
    """What is said of a task with these needs."""
    desk = Desk(match)
    desk.matcher.add_task(task("a", needs))
    desk.now = 3
    return desk.say(*tools).get("a", "")


def test_that_there_are_no_tools_is_told() -> None:
    assert why({"can": "print"}, []) == "no tool is registered"


def test_what_no_tool_has_is_told_and_what_the_nearest_has() -> None:
    tools = [
        registered("counter", {"can": ["count", "sort"], "os": "linux"}),
        registered("eye", {"can": ["look"]}),
    ]
    assert why({"can": "print", "os": "linux"}, tools) == (
        'no tool has can = "print"; nearest: counter has ["count", "sort"]'
    )
    assert why({"can": "print", "gpu": 2}, tools) == (
        'no tool has can = "print" and gpu = 2; nearest: counter has ["count", "sort"] and no gpu'
    )


def test_what_a_schema_asks_for_is_told_in_short() -> None:
    needs = {"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}}
    tools = [registered("cpu-1", {}), registered("gpu-1", {"gpu": 1}), registered("gpu-2", {"gpu": 0})]
    assert why(needs, tools, "schema") == "no tool has gpu ≥ 2; nearest: gpu-1 has 1"
    assert why(needs, tools[:1], "schema") == "no tool has gpu; nearest: cpu-1 has no gpu"


def test_where_each_thing_is_had_by_some_tool_it_is_not_said_that_none_has_it() -> None:
    tools = [registered("a", {"can": "print"}), registered("b", {"gpu": 2})]
    assert why({"can": "print", "gpu": 2}, tools) == (
        "no tool has all that is needed; nearest: a has no gpu for gpu = 2"
    )


def test_what_a_function_says_is_told() -> None:
    def match(skills: Any, needs: Any) -> bool:
        if skills["gpu"] < needs["gpu"]:
            raise MismatchError(f"wants {needs['gpu']} GPUs,\nhas {skills['gpu']}\x00")
        return True

    tools = [registered("cpu-1", {}), registered("gpu-1", {"gpu": 1})]
    said = why({"gpu": 2}, tools, match)
    assert said == "no tool can do it; gpu-1: wants 2 GPUs, has 1 "


def test_where_a_function_does_not_say_why_that_none_matches_is_told() -> None:
    tools = [registered(f"tool-{number}", number) for number in range(3)]
    assert (
        why(5, tools, lambda skills, needs: False) == "none of the tools can do it, of 3 that are registered"
    )


def test_that_needs_cannot_be_judged_is_told() -> None:
    said = why({"gpu": 2}, [registered("t", {"gpu": 2})], "schema")
    assert said.startswith(
        "it cannot be judged whether a tool has what is needed: the needs are no JSON Schema"
    )
    assert "KeyError('x')" in why(1, [registered("t", {})], lambda skills, needs: skills["x"])


def test_that_all_who_could_do_it_are_away_is_told() -> None:
    today = datetime.now(UTC).replace(hour=12, minute=3)
    skills = {"can": "print"}
    offline, draining = registered("xrd-1", skills, "offline", today), registered("xrd-2", skills, "draining")
    others = [registered("idle", {})]
    assert why(skills, [offline, *others]) == "only xrd-1 could do it, and it is offline since 12:03Z"
    assert why(skills, [draining, *others]) == "only xrd-2 could do it, and it is draining"
    long_ago = registered("xrd-1", skills, "offline", today - timedelta(days=400))
    assert why(skills, [long_ago]).endswith(f"offline since {today - timedelta(days=400):%Y-%m-%d} 12:03Z")
    assert why(skills, [draining, offline, *others]) == (
        "only xrd-1 and xrd-2 could do it, and they are offline or draining"
    )
    many = [registered(f"xrd-{number}", skills, "offline") for number in range(9)]
    assert why(skills, many) == "only xrd-0, xrd-1 and 7 more could do it, and they are offline or draining"


def test_that_those_who_can_do_it_are_busy_is_no_remark() -> None:
    assert why({}, [registered("t", {}, "busy"), registered("u", {}, "offline")]) == ""


def test_a_remark_that_is_not_true_any_more_is_corrected() -> None:
    desk = Desk()
    desk.matcher.add_task(task("told before", {}, remark="no tool is registered"))
    desk.matcher.add_task(task("told nothing", {}))
    desk.now = 3
    assert desk.say(registered("t", {}, "busy")) == {"told before": "t can do it, when it has room"}
    assert desk.say() == {}


def test_long_needs_and_names_make_no_long_remark() -> None:
    needs = {f"{'key' * 40}-{number}": "x" * 1_000 for number in range(100)}
    tools = [registered("t" * 128, {f"{'key' * 40}-{number}": ["y" * 1_000] for number in range(100)})]
    for match in ("contains", "schema"):
        asked: Any = needs if match == "contains" else {"properties": {key: {"const": 1} for key in needs}}
        said = why(asked, tools, match)
        assert 200 < len(said) <= 300


def test_nothing_is_said_before_a_kind_has_waited_for_a_while() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 1.9
    assert not desk.remarks.due()
    assert desk.say() == {}
    desk.now = 2.0
    assert desk.remarks.due()
    assert desk.say() == {"a": "no tool is registered"}


def test_a_kind_of_which_one_gets_a_tool_has_not_waited() -> None:
    desk = Desk()
    for number in range(2):
        desk.matcher.add_task(task(f"task-{number}", at=number))
    desk.now = 3
    desk.matcher.add_tool(tool("t"))
    assert len(paired(desk.matcher)) == 1
    assert not desk.remarks.due()
    desk.now = 5
    assert desk.remarks.due()


def test_a_kind_is_looked_at_again_after_a_while_and_told_only_what_is_new() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a", {"gpu": 1}))
    desk.now = 2
    assert desk.say(registered("t", {})) == {"a": "no tool has gpu = 1; nearest: t has no gpu"}
    desk.now = 11.9
    assert not desk.remarks.due()
    desk.now = 12
    assert desk.remarks.due()
    assert desk.say(registered("t", {}, "busy")) == {}
    desk.now = 22
    assert desk.say(registered("t", {"gpu": 0})) == {"a": "no tool has gpu = 1; nearest: t has 0"}
    assert not desk.remarks.due()


def test_who_comes_later_with_the_same_needs_is_told_the_same() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    desk.say()
    desk.matcher.add_task(task("b"))
    assert desk.say() == {"b": "no tool is registered"}


def test_a_remark_that_a_task_has_already_is_not_made_again() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a", remark="no tool is registered"))
    desk.now = 2
    assert desk.say() == {}


def test_very_many_tasks_are_not_all_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_REMARKS", 50)
    monkeypatch.setattr(module, "_MOST_REPLACED", 10)
    desk = Desk()
    for number in range(120):
        desk.matcher.add_task(task(str(number), {"gpu": 1}, at=number))
    desk.now = 2
    far, near = registered("t", {}), registered("u", {"gpu": 0})
    assert [len(desk.say(far)) for _ in range(4)] == [50, 50, 20, 0]
    desk.now = 12
    assert [len(desk.say(near)) for _ in range(13)] == [10] * 12 + [0]
    assert {each.remark for each in next(iter(desk.matcher.waiting)).queue} == {
        "no tool has gpu = 1; nearest: u has 0"
    }


def test_those_who_were_told_nothing_yet_do_not_wait_for_those_who_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_REPLACED", 1)
    desk = Desk()
    for number in range(5):
        desk.matcher.add_task(task(f"old-{number}", at=number, remark="something else"))
        desk.matcher.add_task(task(f"new-{number}", at=number))
    desk.now = 2
    assert {id_[:3] for id_ in desk.say()} == {"old", "new"}
    assert desk.writes == 6


def test_a_remark_that_could_not_be_made_is_made_the_next_time() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    for _ in desk.remarks.check([]):
        pass
    assert len(desk.remarks.new_remarks()) == 1
    assert desk.say() == {"a": "no tool is registered"}


def test_a_task_that_goes_while_it_is_looked_at_is_told_nothing() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.matcher.add_task(task("b", 5))
    desk.now = 2
    steps = desk.remarks.check([registered("t", 7)])
    next(steps)
    desk.matcher.forget_task("a")
    for _ in steps:
        pass
    assert [said.task.id for said in desk.remarks.new_remarks()] == ["b"]


def test_skills_of_tools_that_are_away_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    desk = Desk(lambda skills, needs: asked.append(skills) is not None)
    desk.matcher.add_task(task("a"))
    for number in range(1, 5):
        desk.now = 20.0 * number
        desk.say(registered("t", {"n": 1}, "offline"), registered(f"u-{number}", {"n": 2}, "offline"))
    # For the judgement, and once more each time that something else has to be said.
    assert len(asked) == 2 + 2 * 4


def test_what_was_so_before_a_task_got_a_tool_is_said_to_nobody_any_more() -> None:
    desk = Desk()
    for number in range(2):
        desk.matcher.add_task(task(f"task-{number}", at=number))
    desk.now = 2
    desk.say()
    desk.matcher.add_tool(tool("t"))
    assert len(paired(desk.matcher)) == 1
    desk.matcher.add_task(task("new"))
    assert desk.say(registered("t", None, "busy")) == {}


def test_needs_that_come_again_wait_for_a_while_again() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    desk.say()
    desk.matcher.forget_task("a")
    desk.now = 3
    desk.matcher.add_task(task("b"))
    assert desk.say() == {}
    desk.now = 5
    assert desk.say() == {"b": "no tool is registered"}


def test_skills_of_tools_that_are_away_are_not_forgotten_while_these_are_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interning, "_MOST_RELEASED", 1)
    desk = Desk()
    desk.matcher.add_task(task("a", "print"))
    tools = [registered(f"tool-{number}", ["scan", number], "offline") for number in range(5)]
    for desk.now in (2, 12):
        for _ in desk.remarks.check(tools):
            desk.matcher.round()
        desk.matcher.round()
        assert len(desk.matcher.skills) == 5
    desk.now = 22
    desk.say()
    desk.matcher.round()
    assert len(desk.matcher.skills) <= 3


def test_of_tools_that_lack_as_much_the_one_that_comes_nearest_is_named() -> None:
    assert gap(8, 4) < gap(8, 1)
    assert gap(10**400, 1) == 1
    assert (gap(0, 0), gap(True, 1), gap("a", 1)) == (0, 1, 1)
