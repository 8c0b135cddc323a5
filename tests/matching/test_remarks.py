"""Remarks: the reasons that waiting tasks get, and how often they change."""

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
    """A matcher and its remarks, with a clock that the test sets and a count of the sent remarks."""

    def __init__(self, match: Match | str = "contains") -> None:
        self.now = 0.0
        self.matcher = Matcher(match, clock=lambda: self.now)
        self.remarks = Remarks(self.matcher, after_seconds=2, recheck_seconds=10)
        self.sent = 0

    def send(self, *tools: ListedTool) -> dict[str, str]:
        """Check the needs that are due, send the new remarks, and return them by task id."""
        for _ in self.remarks.check(tools):
            pass
        remarks = self.remarks.new_remarks()
        for each in remarks:
            each.task.remark = each.text
        self.sent += len(remarks)
        return {each.task.id: each.text for each in remarks}


def remark(needs: Any, tools: Sequence[ListedTool], match: Match | str = "contains") -> str:
    """Return the remark on a task with these needs, or an empty text."""
    desk = Desk(match)
    desk.matcher.add_task(task("a", needs))
    desk.now = 3
    return desk.send(*tools).get("a", "")


def test_the_remark_says_that_no_tool_is_registered() -> None:
    assert remark({"can": "print"}, []) == "No tool is registered."


def test_the_remark_names_the_unmet_need_and_the_closest_match() -> None:
    tools = [
        registered("counter", {"can": ["count", "sort"], "os": "linux"}),
        registered("eye", {"can": ["look"]}),
    ]
    assert remark({"can": "print", "os": "linux"}, tools) == (
        'No tool has what the task needs: can = "print". The closest match, counter, has ["count", "sort"].'
    )
    assert remark({"can": "print", "gpu": 2}, tools) == (
        'No tool has what the task needs: can = "print" and gpu = 2.'
        ' The closest match, counter, has ["count", "sort"] and no gpu.'
    )


def test_the_remark_describes_the_requirement_of_a_schema() -> None:
    needs = {"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}}
    tools = [registered("cpu-1", {}), registered("gpu-1", {"gpu": 1}), registered("gpu-2", {"gpu": 0})]
    assert remark(needs, tools, "schema") == (
        "No tool has what the task needs: gpu ≥ 2. The closest match, gpu-1, has 1."
    )
    assert remark(needs, tools[:1], "schema") == (
        "No tool has what the task needs: gpu. The closest match, cpu-1, has no gpu."
    )


def test_the_remark_does_not_deny_a_skill_that_another_tool_has() -> None:
    tools = [registered("a", {"can": "print"}), registered("b", {"gpu": 2})]
    assert remark({"can": "print", "gpu": 2}, tools) == (
        "No single tool has everything that the task needs."
        " The closest match, a, has no gpu instead of gpu = 2."
    )


def test_the_remark_contains_the_message_of_a_mismatch_error() -> None:
    def match(skills: Any, needs: Any) -> bool:
        if skills["gpu"] < needs["gpu"]:
            raise MismatchError(f"wants {needs['gpu']} GPUs,\nhas {skills['gpu']}\x00")
        return True

    tools = [registered("cpu-1", {}), registered("gpu-1", {"gpu": 1})]
    assert remark({"gpu": 2}, tools, match) == "No tool can do this task. gpu-1: wants 2 GPUs, has 1 "
    many = [registered(f"cpu-{number}", {"gpu": 1, "number": number}) for number in range(4)]
    assert remark({"gpu": 2}, many, match) == (
        "No tool can do this task. cpu-0: wants 2 GPUs, has 1 ; cpu-1: wants 2 GPUs, has 1 ; 2 more"
    )


def test_the_remark_says_that_no_tool_matches_if_the_function_gives_no_reason() -> None:
    tools = [registered(f"tool-{number}", number) for number in range(3)]
    assert remark(5, tools, lambda skills, needs: False) == "No tool can do this task. Registered tools: 3."


def test_the_remark_says_why_needs_cannot_be_judged() -> None:
    assert remark({"gpu": 2}, [registered("t", {"gpu": 2})], "schema").startswith(
        "The assigner cannot compare the needs of this task with the tools: the needs are not a JSON Schema"
    )
    assert "KeyError('x')" in remark(1, [registered("t", {})], lambda skills, needs: skills["x"])


def test_the_remark_names_suitable_tools_that_are_offline_or_draining() -> None:
    today = datetime.now(UTC).replace(hour=12, minute=3)
    skills = {"can": "print"}
    offline, draining = registered("xrd-1", skills, "offline", today), registered("xrd-2", skills, "draining")
    others = [registered("idle", {})]
    assert remark(skills, [offline, *others]) == (
        "Only tool xrd-1 can do this task, and it has been offline since 12:03Z."
    )
    assert remark(skills, [draining, *others]) == "Only tool xrd-2 can do this task, and it is draining."
    long_ago = registered("xrd-1", skills, "offline", today - timedelta(days=400))
    assert remark(skills, [long_ago]).endswith(
        f"offline since {today - timedelta(days=400):%Y-%m-%d} 12:03Z."
    )
    assert remark(skills, [draining, offline, *others]) == (
        "Only the tools xrd-1 and xrd-2 can do this task, and they are offline or draining."
    )
    many = [registered(f"xrd-{number}", skills, "offline") for number in range(9)]
    assert remark(skills, many) == (
        "Only the tools xrd-0, xrd-1 and 7 more can do this task, and they are offline or draining."
    )


def test_busy_tools_are_no_reason_for_a_remark() -> None:
    assert remark({}, [registered("t", {}, "busy"), registered("u", {}, "offline")]) == ""


def test_an_outdated_remark_is_corrected() -> None:
    desk = Desk()
    desk.matcher.add_task(task("with a remark", {}, remark="No tool is registered."))
    desk.matcher.add_task(task("without a remark", {}))
    desk.now = 3
    assert desk.send(registered("t", {}, "busy")) == {
        "with a remark": "Tool t can do this task when it has free capacity."
    }
    assert desk.send() == {}


def test_a_remark_stays_short_for_long_needs_and_names() -> None:
    needs = {f"{'key' * 40}-{number}": "x" * 1_000 for number in range(100)}
    tools = [registered("t" * 128, {f"{'key' * 40}-{number}": ["y" * 1_000] for number in range(100)})]
    for match in ("contains", "schema"):
        schema: Any = {"properties": {key: {"const": 1} for key in needs}}
        text = remark(needs if match == "contains" else schema, tools, match)
        assert 200 < len(text) <= 300


def test_a_task_gets_no_remark_before_it_has_waited_for_a_while() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 1.9
    assert not desk.remarks.due()
    assert desk.send() == {}
    desk.now = 2.0
    assert desk.remarks.due()
    assert desk.send() == {"a": "No tool is registered."}


def test_an_assignment_restarts_the_wait_of_tasks_with_equal_needs() -> None:
    desk = Desk()
    for number in range(2):
        desk.matcher.add_task(task(f"task-{number}", at=number))
    desk.now = 3
    desk.matcher.add_tool(tool("t"))
    assert len(paired(desk.matcher)) == 1
    assert not desk.remarks.due()
    desk.now = 5
    assert desk.remarks.due()


def test_needs_are_checked_again_and_only_a_changed_remark_is_sent() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a", {"gpu": 1}))
    desk.now = 2
    assert desk.send(registered("t", {})) == {
        "a": "No tool has what the task needs: gpu = 1. The closest match, t, has no gpu."
    }
    desk.now = 11.9
    assert not desk.remarks.due()
    desk.now = 12
    assert desk.remarks.due()
    assert desk.send(registered("t", {}, "busy")) == {}
    desk.now = 22
    assert desk.send(registered("t", {"gpu": 0})) == {
        "a": "No tool has what the task needs: gpu = 1. The closest match, t, has 0."
    }
    assert not desk.remarks.due()


def test_a_later_task_with_the_same_needs_gets_the_same_remark() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    desk.send()
    desk.matcher.add_task(task("b"))
    assert desk.send() == {"b": "No tool is registered."}


def test_a_remark_that_a_task_already_has_is_not_sent_again() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a", remark="No tool is registered."))
    desk.now = 2
    assert desk.send() == {}


def test_remarks_for_many_tasks_are_sent_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_REMARKS", 50)
    monkeypatch.setattr(module, "_MOST_REPLACED", 10)
    desk = Desk()
    for number in range(120):
        desk.matcher.add_task(task(str(number), {"gpu": 1}, at=number))
    desk.now = 2
    far, near = registered("t", {}), registered("u", {"gpu": 0})
    assert [len(desk.send(far)) for _ in range(4)] == [50, 50, 20, 0]
    desk.now = 12
    assert [len(desk.send(near)) for _ in range(13)] == [10] * 12 + [0]
    assert {each.remark for each in next(iter(desk.matcher.waiting)).queue} == {
        "No tool has what the task needs: gpu = 1. The closest match, u, has 0."
    }


def test_new_remarks_do_not_wait_for_replaced_remarks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_REPLACED", 1)
    desk = Desk()
    for number in range(5):
        desk.matcher.add_task(task(f"old-{number}", at=number, remark="something else"))
        desk.matcher.add_task(task(f"new-{number}", at=number))
    desk.now = 2
    assert {id_[:3] for id_ in desk.send()} == {"old", "new"}
    assert desk.sent == 6


def test_a_remark_that_was_not_sent_is_sent_the_next_time() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    for _ in desk.remarks.check([]):
        pass
    assert len(desk.remarks.new_remarks()) == 1
    assert desk.send() == {"a": "No tool is registered."}


def test_a_task_that_disappears_during_a_check_gets_no_remark() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.matcher.add_task(task("b", 5))
    desk.now = 2
    steps = desk.remarks.check([registered("t", 7)])
    next(steps)
    desk.matcher.forget_task("a")
    for _ in steps:
        pass
    assert [each.task.id for each in desk.remarks.new_remarks()] == ["b"]


def test_skills_of_offline_tools_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    desk = Desk(lambda skills, needs: judged.append(skills) is not None)
    desk.matcher.add_task(task("a"))
    for number in range(1, 5):
        desk.now = 20.0 * number
        desk.send(registered("t", {"n": 1}, "offline"), registered(f"u-{number}", {"n": 2}, "offline"))
    # Two judgements, and two calls for the text of each of the four remarks.
    assert len(judged) == 2 + 2 * 4


def test_an_assignment_discards_the_remark_for_tasks_with_equal_needs() -> None:
    desk = Desk()
    for number in range(2):
        desk.matcher.add_task(task(f"task-{number}", at=number))
    desk.now = 2
    desk.send()
    desk.matcher.add_tool(tool("t"))
    assert len(paired(desk.matcher)) == 1
    desk.matcher.add_task(task("new"))
    assert desk.send(registered("t", None, "busy")) == {}


def test_needs_that_return_wait_again_before_a_remark() -> None:
    desk = Desk()
    desk.matcher.add_task(task("a"))
    desk.now = 2
    desk.send()
    desk.matcher.forget_task("a")
    desk.now = 3
    desk.matcher.add_task(task("b"))
    assert desk.send() == {}
    desk.now = 5
    assert desk.send() == {"b": "No tool is registered."}


def test_skills_of_registered_tools_are_never_forgotten(
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
    desk.send()
    desk.matcher.round()
    assert len(desk.matcher.skills) <= 3


def test_the_gap_of_two_numbers_grows_with_their_distance() -> None:
    assert gap(8, 4) < gap(8, 1)
    assert gap(10**400, 1) == 1
    assert (gap(0, 0), gap(True, 1), gap("a", 1)) == (0, 1, 1)
