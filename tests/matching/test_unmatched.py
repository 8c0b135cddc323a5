"""Unmatched needs and skills."""

from datetime import timedelta

import pytest

from broker.matching import unmatched as module
from broker.matching.matcher import Matcher
from broker.matching.unmatched import UnmatchedNeeds
from tests.matching.candidates import START, paired, task, tool


def served(matcher: Matcher, times: int, *, at: float) -> None:
    for number in range(times):
        matcher.add_task(task(f"served-{at}-{number}", {"can": "count"}, at=at + number))
        matcher.add_tool(tool("counter", {"can": ["count"]}))
        assert len(paired(matcher)) == 1


def test_needs_that_younger_tasks_go_before_are_told() -> None:
    matcher = Matcher()
    for number in range(3):
        matcher.add_task(task(f"print-{number}", {"can": "print"}, at=100 - number))
    served(matcher, 12, at=200)
    assert matcher.unmatched().needs == [
        UnmatchedNeeds(
            needs={"can": "print"},
            waiting=3,
            oldest="print-2",
            since=START + timedelta(seconds=98),
            passed_by=12,
        )
    ]


def test_what_older_tasks_go_before_is_not_passed_over() -> None:
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}, at=1_000))
    served(matcher, 12, at=1)
    assert not matcher.unmatched().needs


def test_what_is_passed_over_a_few_times_is_not_reported() -> None:
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}))
    served(matcher, 9, at=1)
    assert not matcher.unmatched()
    served(matcher, 1, at=20)
    assert [each.passed_by for each in matcher.unmatched().needs] == [10]


def test_skills_that_nobody_asks_for_are_told() -> None:
    matcher = Matcher()
    for id_ in ("xrd-2", "xrd-1"):
        matcher.add_tool(tool(id_, {"can": ["diffract"]}))
    served(matcher, 1, at=0)
    [unasked] = matcher.unmatched().skills
    assert (unasked.skills, unasked.tools) == ({"can": ["diffract"]}, ["xrd-1", "xrd-2"])
    matcher.add_task(task("a", {"can": "diffract"}))
    paired(matcher)
    assert not matcher.unmatched()


def test_of_very_many_that_had_their_turn_the_last_ones_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 20)
    matcher = Matcher()
    matcher.add_task(task("a", {"can": "print"}))
    served(matcher, 100, at=1)
    [passed] = matcher.unmatched().needs
    assert 10 <= passed.passed_by <= 20
