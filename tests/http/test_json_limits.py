"""The limits of JSON values apply at every position, and error messages are short and complete."""

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
from broker.http.body import decode, decode_async
from broker.schemas.tasks import NewTask, NewTasks
from broker.schemas.values import Request
from broker.settings import Settings

LIMITS = Settings()
DEPTH = LIMITS.max_depth
STEP = json_limits.STEP_BYTES

INVALID = {
    "a large number": "1e131073",
    "a small number": "1e-16384",
    "a number with too many digits": "7" * 131_073,
    "an exponent in capitals": "1E+999999",
    "an exponent outside every range": "1e99999999999999999999",
    "many large numbers": ",".join(["1e1000"] * 1_001),
    "a NUL": r'"\u0000"',
    "a NUL after backslashes": r'"\\\\\u0000"',
    "a value nested too deeply": "[" * DEPTH + "]" * DEPTH,
}
VALID = {
    "the largest number": "1e131071",
    "a number with the maximum of digits": "7" * 131_072,
    "an exponent in a string": '"1e999999"',
    "an exponent in a key": '{"1e999999": 1}',
    "an exponent with many leading zeros": "1e" + "0" * 2_000 + "1",
    "an escaped backslash before u0000": r'"\\u0000"',
    "brackets in a string": '"' + "[" * 300 + '"',
    "brackets after an escaped quote": r'"\"' + "[" * 300 + '"',
    "backslashes": '"' + "\\\\" * 300 + '"',
    "a value of the maximum depth": "[" * (DEPTH - 1) + "]" * (DEPTH - 1),
}


def values_around_the_step(value: str) -> Iterator[bytes]:
    """Yield a value in arrays, so that a step of the check ends before, within and after its beginning."""
    for offset in range(-12, 4):
        yield b'["' + b"x" * (STEP + offset - 4) + b'",' + value.encode() + b"]"
    yield b"[" + value.encode() + b"," + b"1," * STEP + b"1]"


def find_problem(value: bytes) -> str | None:
    """Return the error message about a value, which must be valid JSON."""
    json.loads(value, parse_int=str, parse_float=str)
    return json_limits.json_problem(value, LIMITS, matched=False)


@pytest.mark.parametrize("name", INVALID)
def test_limit_applies_wherever_a_step_of_the_check_ends(name: str) -> None:
    assert [
        value[:20] for value in values_around_the_step(INVALID[name]) if find_problem(value) is None
    ] == []


@pytest.mark.parametrize("name", VALID)
def test_valid_value_is_accepted_wherever_a_step_of_the_check_ends(name: str) -> None:
    assert {find_problem(value) for value in values_around_the_step(VALID[name])} == {None}


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
def test_json_depth_does_not_depend_on_the_size_of_the_steps(value: Any, step: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "STEP_BYTES", step)
        patch.setattr(json_limits, "_PAUSE_SECONDS", 0)
        message = json_limits._check_in_steps(json.dumps(value).encode(), most)
    assert (message is None) == (depth_of(value) <= most)


@pytest.mark.parametrize("offset", range(-6, 6))
def test_error_names_the_first_byte_that_is_not_utf_8_wherever_a_step_ends(offset: int) -> None:
    before = b'{"needs":"' + b"x" * (STEP - 12)
    text = before + "😀é漢".encode() * 3 + b"x" * (offset + 6)
    decode(text + b'"}', NewTask, Settings(max_match_bytes=10**6))
    with pytest.raises(MalformedJson, match=f"at byte {len(text)}\\."):
        decode(text + b'\xff"}', NewTask, LIMITS)


def errors(body: str, kind: type[Request]) -> dict[str, str]:
    """Decode an invalid body, and return the error messages by field."""
    with pytest.raises(BadRequest) as refused:
        decode(body.encode(), kind, LIMITS)
    return {error.field: error.message for error in refused.value.errors}


def test_large_batch_reports_every_invalid_field() -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 15} for number in range(9_000)]
    items[3]["priority"] = 99_999
    items[8_000] = {"x": 1}
    items[8_999]["not_before"] = "yesterday"
    named = errors(json.dumps({"items": items}), NewTasks)
    assert named.keys() == {
        "items[3].priority", "items[8000].needs", "items[8000].x", "items[8999].not_before"
    }  # fmt: skip


def test_batch_with_very_many_values_reports_the_first_invalid_field() -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 150} for number in range(9_000)]
    items[8_000]["priority"] = 99_999
    assert errors(json.dumps({"items": items}), NewTasks).keys() == {"items[8000].priority"}


@pytest.mark.parametrize(("place", "field"), [(100, "items[100].needs"), (8_999, "items")])
def test_lone_surrogate_in_a_large_batch_is_reported_in_the_right_item(place: int, field: str) -> None:
    items: list[Any] = [{"needs": number, "payload": [1] * 150} for number in range(9_000)]
    items[place]["needs"] = "\ud800"
    assert errors(json.dumps({"items": items}), NewTasks).keys() == {field}


def test_object_with_very_many_members_reports_the_first_unknown_field() -> None:
    many = ",".join(f'"x{number}":1' for number in range(300_000))
    [named] = errors(f'{{"needs":1,"priority":"high",{many}}}', NewTask).values()
    assert named == "object contains unknown field `x0`"


def test_last_of_many_members_with_the_same_name_counts() -> None:
    for count in (2, 300_000):
        body = "{" + ",".join(['"id":"a"'] * count) + ',"id":"last","needs":1}'
        task = decode(body.encode(), NewTask, LIMITS)
        assert isinstance(task, NewTask)
        assert task.id == "last"
        items = decode(f'{{"items":[{body},{body}]}}'.encode(), NewTasks, LIMITS)
        assert isinstance(items, NewTasks)
        assert [item.id for item in items.items] == ["last", "last"]
        assert errors(body.replace("last", "a b"), NewTask).keys() == {"id"}


def test_decoding_stops_at_the_maximum_length_of_a_list() -> None:
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
def test_error_message_repeats_only_a_little_of_the_body(body: str) -> None:
    for size in (1_000, 1_000_000):
        with pytest.raises(ValidationFailed) as refused:
            decode((body % ("x" * size)).encode(), NewTask, LIMITS)
        assert len(refused.value.detail) < 1_000


@pytest.mark.parametrize("quotes", [0, 1_000, 3_000_000])
def test_field_of_a_lone_surrogate_is_reported_after_any_text(quotes: int) -> None:
    text = r"\"" * quotes
    for lone in (r"\ud800", r"\udfff", r"\ud800x", r"\ud800\u0041"):
        assert errors(f'{{"needs":1,"payload":"{text}{lone}"}}', NewTask) == {
            "payload": json_limits.LONE_SURROGATE
        }


async def test_small_body_does_not_wait_for_huge_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    find_problems = json_limits.find_problems

    def wait_in_huge(request: Request, *others: Any) -> Iterator[Any]:
        assert isinstance(request, NewTask)
        if request.id == "huge":
            has_begun.set()
            assert may_end.wait(20)
        return find_problems(request, *others)

    monkeypatch.setattr(json_limits, "find_problems", wait_in_huge)

    def task(id_: str, size: int) -> Coroutine[Any, Any, Request]:
        body = json.dumps({"id": id_, "needs": 1, "payload": "x" * size}).encode()
        return decode_async(body, NewTask, LIMITS)

    huge = [asyncio.create_task(task("huge", 2**20)) for _ in range(4)]
    try:
        assert await asyncio.to_thread(has_begun.wait, 20)
        async with asyncio.timeout(20):
            for size in (1, 70_000, 2**20 - 100):
                await task("small", size)
        assert not any(each.done() for each in huge)
    finally:
        may_end.set()
        await asyncio.gather(*huge)


NARROW = Settings(max_depth=3, max_match_bytes=16, max_text_chars=16)
numbers = st.sampled_from(
    ["1", "-0.5", "1e99", "1e-99", "1e131073", "-1E+999999", "1.5e-16384", "0e0100", "7" * 1_500, "1e000"]
)
json_texts = st.recursive(
    numbers | st.sampled_from(['""', '"1e999"', '",1e999"', r'"\u0000"', r'"\\u0000"', r'"\"["', '"[[[["']),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda item: f'{{"1e123":{item}}}'),
    ),
    max_leaves=6,
)
times = st.sampled_from(["2026-12-01T00:00:00Z", "0001-01-01T00:00:00+01:00"])


@st.composite
def task_texts(draw: st.DrawFn) -> str:
    fields = {"needs": draw(json_texts)}
    if draw(st.booleans()):
        fields["payload"] = draw(json_texts)
    if draw(st.booleans()):
        fields["id"] = json.dumps(draw(st.text("ae19-", min_size=1, max_size=20)).strip("-") or "a")
    if draw(st.integers(0, 4)) == 0:
        fields["not_before"] = json.dumps(draw(times))
    return "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"


@given(items=st.lists(task_texts(), min_size=1, max_size=5), limits=st.sampled_from([LIMITS, NARROW]))
def test_check_of_a_whole_body_never_accepts_an_invalid_value(items: list[str], limits: Settings) -> None:
    for text, kind in ((items[0], NewTask), (f'{{"items":[{",".join(items)}]}}', NewTasks)):
        request = decoders.read(text.encode(), kind)
        if json_limits.is_certainly_valid(request, text.encode(), limits):
            assert list(json_limits.find_problems(request, limits)) == []


def test_check_of_a_whole_body_suffices_for_usual_requests() -> None:
    task = '{"needs":{"skill":"render"},"payload":{"note":"C:\\\\data","sizes":[1.5e9,-2]},"id":"7e123-%d"}'
    single, several = task % 1, f'{{"items":[{",".join(task % number for number in range(200))}]}}'
    for text, kind in ((single, NewTask), (several, NewTasks)):
        assert json_limits.is_certainly_valid(decoders.read(text.encode(), kind), text.encode(), LIMITS)
