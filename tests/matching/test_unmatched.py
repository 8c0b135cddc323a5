"""Unmatched needs and skills, which the assigner reports."""

from datetime import timedelta

import pytest

from broker.matching import unmatched as module
from broker.matching.matcher import Matcher
from broker.matching.unmatched import UnmatchedNeeds
from tests.matching.candidates import START, paired, task, tool


def serve(matcher: Matcher, times: int, *, at: float) -> None:
    """Assign this many other tasks, the first of them submitted at this time."""
    for number in range(times):
        matcher.add_task(task(f"served-{at}-{number}", {"can": "count"}, at=at + number))
        matcher.add_tool(tool("counter", {"can": ["count"]}))
        assert len(paired(matcher)) == 1


def test_needs_that_younger_tasks_overtake_are_reported() -> None:
    matcher = Matcher()
    for number in range(3):
        matcher.add_task(task(f"print-{number}", {"can": "print"}, at=100 - number))
    serve(matcher, 12, at=200)
    assert matcher.unmatched().needs == [
        UnmatchedNeeds(
            needs={"can": "print"},
            waiting=3,
            oldest="print-2",
            since=START + timedelta(seconds=98),
            passed_by=12,
        )
    ]


def test_needs_that_only_older_tasks_precede_are_not_reported() -> None:
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}, at=1_000))
    serve(matcher, 12, at=1)
    assert not matcher.unmatched().needs


def test_needs_that_few_tasks_overtake_are_not_reported() -> None:
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}))
    serve(matcher, 9, at=1)
    assert not matcher.unmatched()
    serve(matcher, 1, at=20)
    assert [each.passed_by for each in matcher.unmatched().needs] == [10]


def test_skills_that_no_task_needs_are_reported() -> None:
    matcher = Matcher()
    for id_ in ("xrd-2", "xrd-1"):
        matcher.add_tool(tool(id_, {"can": ["diffract"]}))
    serve(matcher, 1, at=0)
    [unused] = matcher.unmatched().skills
    assert (unused.skills, unused.tools) == ({"can": ["diffract"]}, ["xrd-1", "xrd-2"])
    matcher.add_task(task("a", {"can": "diffract"}))
    paired(matcher)
    assert not matcher.unmatched()


def test_only_the_latest_assignments_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 20)
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}))
    serve(matcher, 100, at=1)
    [passed] = matcher.unmatched().needs
    assert 10 <= passed.passed_by <= 20
