"""The strategy `contains`: the needs of a task are a part of the skills of a tool."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.matching.contains import Contains, contains
from broker.matching.mismatch import UnjudgeableError
from tests.matching.candidates import raw

JSON = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, 2.5, "", "a", "b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("skills", "needs", "met"),
    [
        ({"can": ["a", "b"]}, {"can": "a"}, True),
        ({"can": ["a", "b"]}, {"can": ["b", "a"]}, True),
        ({"can": ["a", "b"]}, {"can": "c"}, False),
        ({"can": "a"}, {}, True),
        ({}, {"can": "a"}, False),
        ({"gpu": {"memory": 8, "kind": "x"}}, {"gpu": {"kind": "x"}}, True),
        ([{"a": 1, "b": 2}, 3], {"a": 1}, True),
        ("a", "a", True),
        (None, None, True),
        ("a", ["a"], False),
        (["a"], [], True),
        ([[1, 2], 3], [2, 3], True),
        ([1, 2], [[1, 2]], False),
        ([[1, 2, 3]], [[1, 2]], True),
        ({}, [], False),
        ([], {}, False),
    ],
)
def test_skills_contain_needs(skills: Any, needs: Any, met: bool) -> None:
    assert contains(skills, needs) is met


@pytest.mark.parametrize(("one", "other", "equal"), [(1, 1.0, True), (1, True, False), (0, False, False)])
def test_values_are_equal_as_in_json(one: Any, other: Any, equal: bool) -> None:
    assert contains(one, other) is equal
    assert contains({"a": [one]}, {"a": other}) is equal
    assert contains([{"a": other}], {"a": one}) is equal


def as_defined(skills: Any, needs: Any) -> bool:
    """Compare skills and needs by the plain definition."""
    if isinstance(skills, dict) and isinstance(needs, dict):
        return all(key in skills and as_defined(skills[key], needs[key]) for key in needs)
    if isinstance(skills, list):
        wanted = needs if isinstance(needs, list) else [needs]
        return all(any(as_defined(skill, need) for skill in skills) for need in wanted)
    return isinstance(skills, bool) == isinstance(needs, bool) and skills == needs


@given(JSON, JSON)
def test_contains_agrees_with_its_definition(skills: Any, needs: Any) -> None:
    assert contains(skills, needs) is as_defined(skills, needs)


@given(JSON)
def test_every_value_contains_itself(value: Any) -> None:
    assert contains(value, value)


@given(JSON, JSON)
def test_there_are_mismatches_exactly_if_the_skills_do_not_match(skills: Any, needs: Any) -> None:
    strategy = Contains()
    ready = strategy.skills(bytes(raw(skills)))
    assert strategy.matches(ready, needs) is not strategy.mismatches(ready, needs)


def lacks(skills: Any, needs: Any) -> list[tuple[str, str]]:
    strategy = Contains()
    return [
        (mismatch.wanted, mismatch.had)
        for mismatch in strategy.mismatches(strategy.skills(bytes(raw(skills))), needs)
    ]


def test_mismatches_name_the_need_and_the_value_of_the_skills() -> None:
    assert lacks({"can": ["count", "sort"]}, {"can": "print"}) == [('can = "print"', '["count", "sort"]')]
    assert lacks({}, {"can": "print"}) == [('can = "print"', "no can")]
    assert lacks({"gpu": {"memory": 4}}, {"gpu": {"memory": 8, "kind": "x"}}) == [
        ("gpu.memory = 8", "4"),
        ('gpu.kind = "x"', "no gpu.kind"),
    ]
    assert lacks(["a"], ["a", "b", "c"]) == [('"b"', '["a"]'), ('"c"', '["a"]')]
    assert lacks("a", "b") == [('"b"', '"a"')]
    assert lacks({"a b": 1}, {"a b": True}) == [('["a b"] = true', "1")]


def test_long_values_are_shortened() -> None:
    [(wanted, had)] = lacks({"can": list(range(10_000))}, {"can": "x" * 10_000})
    assert len(wanted) < 80
    assert len(had) < 80


def test_long_lists_of_scalars_are_compared_quickly() -> None:
    began = time.perf_counter()
    assert contains(list(range(100_000)), list(range(100_000)))
    assert not contains(list(range(100_000)), [-1] * 100_000)
    assert time.perf_counter() - began < 5


def test_a_comparison_that_would_take_minutes_is_refused() -> None:
    began = time.perf_counter()
    with pytest.raises(UnjudgeableError, match="too many objects in lists"):
        contains([{"a": number} for number in range(6_000)], [{"a": 5_999}] * 6_000)
    assert time.perf_counter() - began < 5
