"""The strategy `schema`: the skills satisfy a JSON Schema, and no schema can do harm."""

import re
import socket
import time
from typing import Any

import pytest

from broker.matching.json_schema import Schema
from broker.matching.mismatch import UnjudgeableError
from tests.matching.candidates import raw


def satisfied(skills: Any, needs: Any) -> bool:
    strategy = Schema()
    return strategy.matches(strategy.skills(bytes(raw(skills))), strategy.needs(bytes(raw(needs))))


def lacks(skills: Any, needs: Any) -> list[tuple[str, str]]:
    strategy = Schema()
    ready = strategy.skills(bytes(raw(skills))), strategy.needs(bytes(raw(needs)))
    return [(mismatch.wanted, mismatch.had) for mismatch in strategy.mismatches(*ready)]


@pytest.mark.parametrize(
    ("skills", "needs", "met"),
    [
        ({"gpu": 2}, {"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}}, True),
        ({"gpu": 1}, {"required": ["gpu"], "properties": {"gpu": {"minimum": 2}}}, False),
        ({}, {"properties": {"gpu": {"minimum": 2}}}, True),
        ({"can": ["print"]}, {"properties": {"can": {"contains": {"const": "print"}}}}, True),
        ("linux", {"enum": ["linux", "mac"]}, True),
        (3, {"$defs": {"many": {"minimum": 2}}, "$ref": "#/$defs/many"}, True),
        (1, {"$defs": {"many": {"minimum": 2}}, "$ref": "#/$defs/many"}, False),
        (1, {"$defs": {"a/b~ c": False}, "$ref": "#/$defs/a~1b~0%20c"}, False),
        (1.0, {"type": "integer"}, True),
        (True, {"const": 1}, False),
        ("no date", {"type": "string", "format": "date"}, True),
        (1, True, True),
        (1, False, False),
        (1, {}, True),
    ],
)
def test_skills_satisfy_needs(skills: Any, needs: Any, met: bool) -> None:
    assert satisfied(skills, needs) is met


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"gpu": 2}, 'no key ("gpu")'),
        ({"title": "a printer", "can": "print"}, 'no key ("title", "can")'),
        ("print", "an object, true or false"),
        ('{"type": "string"}', "an object, true or false"),
        (["print"], "an object, true or false"),
        ({"type": "printer"}, 'at type: "printer"'),
        ({"properties": {"name": {"pattern": "("}}}, "at properties.name.pattern"),
        ({"$ref": "#/$defs/nothing"}, "does not exist in the schema"),
    ],
)
def test_needs_that_are_no_schema_cannot_be_judged(needs: Any, message: str) -> None:
    with pytest.raises(UnjudgeableError, match=re.escape(message)):
        satisfied({}, needs)


def test_a_schema_never_causes_a_network_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for needs in (
            {"$ref": url},
            {"$ref": "file:///etc/passwd"},
            {"$ref": "other.json"},
            {"$id": url, "$ref": "other.json"},
            {"allOf": [{"$id": url, "$ref": "#/$defs/x"}]},
            {"$dynamicRef": url},
            {"$schema": url, "$ref": url},
        ):
            with pytest.raises(UnjudgeableError):
                satisfied({}, needs)
        satisfied({}, {"$schema": url, "type": "object"})
        with pytest.raises(TimeoutError):
            server.accept()


def twice(key: str, times: int) -> Any:
    """Return a short schema with 2 to the power of `times` parts."""
    parts = {f"a{n}": {key: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(times)}
    return {"$defs": parts | {f"a{times}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def nested(times: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(times):
        schema = {"if": schema, "then": True, "unevaluatedProperties": False}
    return schema


LONG = "ab" * 30_000


@pytest.mark.parametrize(
    ("skills", "needs"),
    [
        (1, twice("allOf", 40)),
        (1, twice("anyOf", 40)),
        (1, {"properties": {"$defs": twice("oneOf", 40)["$defs"]["a0"]}} | twice("oneOf", 40)),
        (1, {"$ref": "#"}),
        (1, {"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
        (1, {"$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(2000)}, "$ref": "#/$defs/a0"}),
        ({}, nested(22)),
        (LONG, {"allOf": [{"pattern": f"[ab]*a[ab]{{{300 + n}}}c"} for n in range(90)]}),
        (LONG, {"pattern": "(a{1000}){1000}"}),
        ([10_000] * 10_000, {"items": {"allOf": [{"minimum": n} for n in range(3_000)]}}),
    ],
    ids=[
        "all",
        "any",
        "one",
        "itself",
        "recursive",
        "chain",
        "unevaluated",
        "patterns",
        "pattern",
        "product",
    ],
)
def test_an_expensive_schema_is_refused_at_once(skills: Any, needs: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(UnjudgeableError):
        satisfied(skills, needs)
    assert time.perf_counter() - began < 2


def test_a_regular_expression_takes_linear_time() -> None:
    began = time.perf_counter()
    assert not satisfied("a" * 60_000 + "b", {"pattern": "^(a+)+$"})
    assert time.perf_counter() - began < 2


def test_finding_mismatches_stops_early_if_there_are_very_many() -> None:
    began = time.perf_counter()
    mismatches = lacks([-1] * 10_000, {"items": {"allOf": [{"minimum": n} for n in range(300)]}})
    assert mismatches == [("[0] ≥ 0", "-1")]
    assert time.perf_counter() - began < 2


def test_mismatches_name_the_need_and_the_value_of_the_skills() -> None:
    needs = {
        "type": "object",
        "required": ["gpu", "os"],
        "properties": {
            "gpu": {"minimum": 2},
            "can": {"contains": {"const": "print"}},
            "arch": {"enum": ["arm", "x86"]},
            "name": {"pattern": "^a"},
            "disk": {"properties": {"free": {"exclusiveMinimum": 10}}},
            "broken": False,
            "n": {"$ref": "#/$defs/number"},
        },
        "$defs": {"number": {"type": ["integer", "null"]}},
    }
    skills = {
        "gpu": 1,
        "can": ["count"],
        "arch": "mips",
        "name": "b",
        "disk": {"free": 10},
        "broken": True,
        "n": "x",
    }
    assert set(lacks(skills, needs)) == {
        ("os", "no os"),
        ("gpu ≥ 2", "1"),
        ('can = "print"', '["count"]'),
        ('arch in ["arm", "x86"]', '"mips"'),
        ('name with pattern "^a"', '"b"'),
        ("disk.free > 10", "10"),
        ("no broken", "true"),
        ("n of type integer or null", '"x"'),
    }
    assert lacks(1, {"type": "object"}) == [("skills of type object", "1")]


@pytest.mark.parametrize(
    ("needs", "skills"),
    [
        (
            {
                "anyOf": [{"$ref": "#/$defs/b"}] * 48,
                "$defs": {
                    "b": {"anyOf": [{"$ref": "#/$defs/e"}] * 48},
                    "e": {"enum": [{"gpus": n + 0.5} for n in range(4000)]},
                },
            },
            {"gpus": 1},
        ),
        ({"contains": {"enum": [{"a": n} for n in range(6000)]}}, [{"a": 0.5}] * 7000),
        ({"contains": {"enum": list(range(10_000))}}, [0.5] * 15_000),
        ({"contains": {"const": [{"a": n} for n in range(6000)]}}, [[{"a": n} for n in range(5999)]] * 1),
    ],
)
def test_values_in_const_and_enum_count_towards_the_cost(needs: Any, skills: Any) -> None:
    schema = Schema()
    with pytest.raises(UnjudgeableError, match="too large"):
        schema.matches(schema.skills(bytes(raw(skills))), schema.needs(bytes(raw(needs))))


def test_an_enum_of_thousands_of_names_is_accepted() -> None:
    needs = {"required": ["name"], "properties": {"name": {"enum": [f"name-{n}" for n in range(4000)]}}}
    assert satisfied({"name": "name-3999"}, needs)
