"""The limits of a JSON value hold wherever it exceeds them, and errors stay short and complete."""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BadRequest, MalformedJson, ValidationFailed
from broker.http import decoders, json_limits
from broker.http.body import decode, decoded
from broker.schemas.tasks import NewTask, NewTasks
from broker.schemas.values import Request
from broker.settings import Settings

LIMITS = Settings()
DEPTH = LIMITS.max_depth
STEP = json_limits.STEP_BYTES

UNFIT = {
    "a large number": "1e131073",
    "a small number": "1e-16384",
    "a number of many digits": "7" * 131_073,
    "an exponent in capitals": "1E+999999",
    "an exponent beyond everything": "1e99999999999999999999",
    "many large numbers": ",".join(["1e1000"] * 1_001),
    "a zero": r'"\u0000"',
    "a zero behind backslashes": r'"\\\\\u0000"',
    "too deep": "[" * DEPTH + "]" * DEPTH,
}
FIT = {
    "the largest number": "1e131071",
    "a number of the most digits": "7" * 131_072,
    "an exponent in a text": '"1e999999"',
    "an exponent in a key": '{"1e999999": 1}',
    "a long exponent of zeros": "1e" + "0" * 2_000 + "1",
    "no zero": r'"\\u0000"',
    "brackets in a text": '"' + "[" * 300 + '"',
    "brackets behind a quote": r'"\"' + "[" * 300 + '"',
    "backslashes": '"' + "\\\\" * 300 + '"',
    "depth": "[" * (DEPTH - 1) + "]" * (DEPTH - 1),
}


def around_the_step(value: str) -> Iterator[bytes]:
    """The value in an array, so that a step of the check ends before, within and behind its beginning."""
    for place in range(-12, 4):
        yield b'["' + b"x" * (STEP + place - 4) + b'",' + value.encode() + b"]"
    yield b"[" + value.encode() + b"," + b"1," * STEP + b"1]"


def problem(value: bytes) -> str | None:
    json.loads(value, parse_int=str, parse_float=str)
    return json_limits.json_problem(value, LIMITS, matched=False)


@pytest.mark.parametrize("name", UNFIT)
def test_a_limit_holds_wherever_a_step_ends(name: str) -> None:
    assert [value[:20] for value in around_the_step(UNFIT[name]) if problem(value) is None] == []


@pytest.mark.parametrize("name", FIT)
def test_no_limit_is_seen_where_there_is_none(name: str) -> None:
    assert {problem(value) for value in around_the_step(FIT[name])} == {None}


texts = st.text(st.sampled_from('\\"[{ue10+-.\x01é'), max_size=8)
values = st.recursive(
    st.one_of(
        st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts, st.booleans(), st.none()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(value=values, step=st.integers(1, 40), most=st.integers(1, 5))
def test_depth_is_counted_the_same_in_steps_of_any_size(value: Any, step: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "STEP_BYTES", step)
        patch.setattr(json_limits, "_PAUSE_SECONDS", 0)
        found = json_limits._look_closely(json.dumps(value).encode(), most)
    assert (found is None) == (depth_of(value) <= most)


@pytest.mark.parametrize("place", range(-6, 6))
def test_the_first_byte_that_is_no_utf_8_is_named_wherever_a_step_ends(place: int) -> None:
    before = b'{"needs":"' + b"x" * (STEP - 12)
    text = before + "😀é漢".encode() * 3 + b"x" * (place + 6)
    decode(text + b'"}', NewTask, Settings(max_match_bytes=10**6))
    with pytest.raises(MalformedJson, match=f"byte {len(text)} cannot"):
        decode(text + b'\xff"}', NewTask, LIMITS)


def errors(body: str, form: type[Request]) -> dict[str, str]:
    with pytest.raises(BadRequest) as refused:
        decode(body.encode(), form, LIMITS)
    return {error.field: error.message for error in refused.value.errors}


def test_a_large_batch_names_all_that_is_wrong() -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 15} for number in range(9_000)]
    items[3]["priority"] = 99_999
    items[8_000] = {"x": 1}
    items[8_999]["not_before"] = "yesterday"
    named = errors(json.dumps({"items": items}), NewTasks)
    assert named.keys() == {
        "items[3].priority", "items[8000].needs", "items[8000].x", "items[8999].not_before"
    }  # fmt: skip


def test_a_batch_of_very_many_parts_names_the_first_that_is_wrong() -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 150} for number in range(9_000)]
    items[8_000]["priority"] = 99_999
    assert errors(json.dumps({"items": items}), NewTasks).keys() == {"items[8000].priority"}


@pytest.mark.parametrize(("place", "field"), [(100, "items[100].needs"), (8_999, "items")])
def test_a_lone_surrogate_far_into_a_body_is_in_no_wrong_item(place: int, field: str) -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 150} for number in range(9_000)]
    items[place]["needs"] = "\ud800"
    assert errors(json.dumps({"items": items}), NewTasks).keys() == {field}


def test_an_object_of_very_many_members_names_the_first_that_is_no_field() -> None:
    many = ",".join(f'"x{number}":1' for number in range(300_000))
    [named] = errors(f'{{"needs":1,"priority":"high",{many}}}', NewTask).values()
    assert named == "object contains unknown field `x0`"


def test_of_members_of_the_same_name_the_last_counts_however_many_there_are() -> None:
    for count in (2, 300_000):
        body = "{" + ",".join(['"id":"a"'] * count) + ',"id":"last","needs":1}'
        task = decode(body.encode(), NewTask, LIMITS)
        assert isinstance(task, NewTask)
        assert task.id == "last"
        items = decode(f'{{"items":[{body},{body}]}}'.encode(), NewTasks, LIMITS)
        assert isinstance(items, NewTasks)
        assert [item.id for item in items.items] == ["last", "last"]
        assert errors(body.replace("last", "a b"), NewTask).keys() == {"id"}


def test_a_list_that_is_too_long_is_decoded_no_further_than_it_may_be() -> None:
    item = '{"needs":1}'
    assert errors('{"items":[' + ",".join([item] * 500_000) + "]}", NewTasks) == {
        "items": "expected `array` of length <= 10000"
    }
    assert decoders._items_decoded.count == 10_001
    most = decode(('{"items":[' + ",".join([item] * 10_000) + "]}").encode(), NewTasks, LIMITS)
    assert isinstance(most, NewTasks)
    assert len(most.items) == 10_000


@pytest.mark.parametrize(
    "body", ['{"needs":1,"%s":1}', '{"needs":1,"id":"%s"}', '{"needs":1,"priority":"%s"}']
)
def test_an_error_repeats_little_of_what_was_sent(body: str) -> None:
    for size in (1_000, 1_000_000):
        with pytest.raises(ValidationFailed) as refused:
            decode((body % ("x" * size)).encode(), NewTask, LIMITS)
        assert len(refused.value.detail) < 1_000


@pytest.mark.parametrize("quotes", [0, 1_000, 3_000_000])
def test_a_lone_surrogate_is_named_behind_any_text(quotes: int) -> None:
    text = r"\"" * quotes
    for lone in (r"\ud800", r"\udfff", r"\ud800x", r"\ud800\u0041"):
        assert errors(f'{{"needs":1,"payload":"{text}{lone}"}}', NewTask) == {
            "payload": json_limits.LONE_SURROGATE
        }


async def test_a_body_of_some_kilobytes_does_not_wait_for_huge_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()
    problems = json_limits.problems

    def wait_in_huge(request: Request, *others: Any) -> Iterator[Any]:
        assert isinstance(request, NewTask)
        if request.id == "huge":
            begun.set()
            assert may_end.wait(20)
        return problems(request, *others)

    monkeypatch.setattr(json_limits, "problems", wait_in_huge)

    def task(id_: str, size: int) -> Coroutine[Any, Any, Request]:
        body = json.dumps({"id": id_, "needs": 1, "payload": "x" * size}).encode()
        return decoded(body, NewTask, LIMITS)

    huge = [asyncio.create_task(task("huge", 2**20)) for _ in range(4)]
    try:
        assert await asyncio.to_thread(begun.wait, 20)
        async with asyncio.timeout(20):
            for size in (1, 70_000, 2**20 - 100):
                await task("small", size)
        assert not any(each.done() for each in huge)
    finally:
        may_end.set()
        await asyncio.gather(*huge)
