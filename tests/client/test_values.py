"""Values of scientific libraries in results and reports: each work item ends, and no result is lost."""

import asyncio
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import json
import math
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pydantic
import pytest

from broker.client import (
    Assigner,
    AsyncBroker,
    AsyncJob,
    Job,
    ProblemError,
    TaskFailedError,
    Tool,
    sanitizing,
)
from broker.client.encoding import encoded
from broker.schemas.limits import LONGEST_TEXT_CHARS
from broker.settings import Settings
from tests.client.test_foreign import PROBLEM_JSON, running_proxy
from tests.client.test_programs import at_work, circular_list, fast_watching
from tests.conftest import Running, Serve
from tests.support import api

__all__ = ["fast_watching"]

BERLIN = datetime.timezone(datetime.timedelta(hours=2))
NOON = datetime.datetime(2026, 7, 2, 12, 0, 0, 500_000)  # noqa: DTZ001 - a time without a zone
LOST = "\N{REPLACEMENT CHARACTER}"


class Phase(enum.Enum):
    LIQUID = "liquid"
    SOLID = 2


class Flag(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Peak:
    position: Any
    phase: Phase = Phase.LIQUID


@attrs.define
class Fit:
    values: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    file: Path
    at: datetime.datetime
    counts: np.ndarray


class Text(str):
    __slots__ = ()


class Number(float):
    pass


VALUES = {
    "float64": (np.float64(1.5), 1.5),
    "float32": (np.float32(0.5), 0.5),
    "longdouble": (np.longdouble("1.5"), 1.5),
    "int64": (np.int64(3), 3),
    "uint8": (np.uint8(200), 200),
    "bool_": (np.bool_(True), True),
    "str_": (np.str_("µ"), "µ"),
    "array": (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    "array of NaN": (np.array([1.5, math.nan, math.inf]), [1.5, None, None]),
    "array of objects": (np.array([1, "a", None], dtype=object), [1, "a", None]),
    "array without dimension": (np.array(1.5), 1.5),
    "masked array": (np.ma.array([1, 2], mask=[False, True]), [1, None]),
    "structured array": (np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]), [[1, 2.5]]),
    "datetime64": (np.datetime64("2026-07-02T12:00:00", "ns"), "2026-07-02T12:00:00"),
    "array of times": (np.array(["2026-07-02", "NaT"], dtype="M8[ns]"), ["2026-07-02T00:00:00", None]),
    "timedelta64": (np.timedelta64(90, "s"), "PT90S"),
    "path": (Path("a") / "b", os.path.join("a", "b")),  # noqa: PTH118 - as this machine writes it
    "time without zone": (NOON, "2026-07-02T12:00:00.500000"),
    "time with zone": (NOON.replace(tzinfo=BERLIN), "2026-07-02T12:00:00.500000+02:00"),
    "date": (NOON.date(), "2026-07-02"),
    "duration": (datetime.timedelta(seconds=90), "PT90S"),
    "dataclass": (Peak(np.float64(0.5)), {"position": 0.5, "phase": "liquid"}),
    "attrs": (Fit(np.arange(2)), {"values": [0, 1]}),
    "pydantic": (
        Model(file=Path("a"), at=NOON, counts=np.arange(2)),
        {"file": "a", "at": "2026-07-02T12:00:00.500000", "counts": [0, 1]},
    ),
    "enum": ([Phase.LIQUID, Phase.SOLID, Flag.A | Flag.B], ["liquid", 2, 3]),
    "sets": ([{1}, frozenset((2,)), {"a": 1}.keys(), {"a": 1}.values()], [[1], [2], ["a"], [1]]),
    "sequences": ([collections.deque((1,)), range(2), (3,)], [[1], [0, 1], [3]]),
    "mappings": (
        [collections.Counter("a"), collections.UserDict(b=1), collections.defaultdict(int, c=1)],
        [{"a": 1}, {"b": 1}, {"c": 1}],
    ),
    "keys": (
        {np.int64(7): 1, Path("p"): 2, Phase.SOLID: 3, 1.5: 4, None: 5, True: 6},
        {"7": 1, "p": 2, "2": 3, "1.5": 4, "null": 5, "true": 6},
    ),
    "numbers": ([fractions.Fraction(1, 4), decimal.Decimal("1.10"), 10**30], [0.25, "1.10", 10**30]),
    "subclasses": ([Text("a"), Number(0.5)], ["a", 0.5]),
    "no numbers": ([math.nan, math.inf, np.float32("nan")], [None, None, None]),
    "bytes": (b"ab", "YWI="),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "exceptions": ([ValueError("too hot"), KeyError()], ["too hot", "KeyError"]),
}
WITHOUT_JSON_FORM = {
    "object": (object(), "a value of type object has no JSON form"),
    "type": (np.float64, r"a value of type numpy\.float64 has no JSON form"),
    "complex": (1j, "a value of type complex has no JSON form"),
    "numpy complex": (np.array([1j]), "a value of type complex has no JSON form"),
    "function": (len, "a value of type builtin_function_or_method has no JSON form"),
    "generator": ((n for n in ()), "a value of type generator has no JSON form"),
    "tuple as key": ({(1, 2): 3}, "the key of a dict is a tuple"),
    "lock": ({"deep": [threading.Lock()]}, "lock has no JSON form"),
    "circular list": (circular_list(), "the value contains itself"),
    "lone surrogate": ("\ud800", "surrogates not allowed"),
}


@pytest.mark.parametrize(("value", "expected"), VALUES.values(), ids=VALUES)
def test_common_python_values_are_encoded_as_json(value: Any, expected: Any) -> None:
    assert json.loads(encoded(value)) == expected


@pytest.mark.parametrize(("value", "message"), WITHOUT_JSON_FORM.values(), ids=WITHOUT_JSON_FORM)
def test_a_value_without_a_json_form_is_refused_with_its_type(value: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        encoded(value)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        (0.5, 0.5), (1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (fractions.Fraction(1, 2), 0.5),
        (decimal.Decimal("0.5"), 0.5), (1.0000000000000002, 1.0), (-1e-17, 0.0),
        (math.nan, None), (math.inf, None), (50, None), (-1, None), (None, None), ("half", None),
        (object(), None), (np.arange(2), None), (10**400, None),
    ],
)  # fmt: skip
def test_any_progress_becomes_a_number_from_0_to_1_or_none(value: Any, accepted: float | None) -> None:
    assert sanitizing.progress(value) == accepted


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ("fine", "fine"), ("a\0b", f"a{LOST}b"), ("\ud800", LOST), (ValueError("too hot"), "too hot"),
        (KeyError(), "KeyError"), (7, "7"), (Path("a"), "a"), (None, None),
        ("x" * 10_000, "x" * 10_000), ("x" * 10_001, "x" * 9_999 + "…"),
    ],
    ids=repr,
)  # fmt: skip
def test_any_message_becomes_a_text_that_the_broker_accepts(value: Any, accepted: str | None) -> None:
    assert sanitizing.message(value) == accepted


def test_report_data_has_only_characters_that_the_broker_can_store() -> None:
    data = {"a\0": ["\ud800", r"\u0000", Peak(np.str_("a\0b"))], "n": np.arange(2)}
    assert json.loads(bytes(sanitizing.data(data))) == {
        f"a{LOST}": [LOST, r"\u0000", {"position": f"a{LOST}b", "phase": "liquid"}],
        "n": [0, 1],
    }


@pytest.fixture
async def submitter(broker: Running) -> AsyncIterator[AsyncBroker]:
    async with AsyncBroker(broker.url) as submitter:
        yield submitter


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no words")


REPORTS: list[dict[str, Any]] = [
    {"progress": 1.0000000000000002},
    {"progress": math.nan, "message": "a\0b \ud800"},
    {"progress": 50},
    {"progress": np.float32(0.5), "message": ValueError("too hot"), "data": np.arange(2)},
    {"message": "x" * 10_001},
    {"message": Unprintable(), "data": object()},
    {"data": {"\0": Path("a")}},
]
ACCEPTED = [
    (1.0, None, None), (None, f"a{LOST}b {LOST}", None), (None, None, None), (0.5, "too hot", [0, 1]),
    (None, "x" * 9_999 + "…", None), (None, None, None), (None, None, {LOST: "a"}),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["ordinary", "async"])
async def test_a_job_succeeds_even_if_its_reports_have_unusual_values(
    broker: Running, submitter: AsyncBroker, kind: str
) -> None:
    tool = Tool("talkative", {}, url=broker.url)

    def ordinary(job: Job) -> str:
        for report in REPORTS:
            job.report(**report)
        return "fine"

    async def asynchronous(job: AsyncJob) -> str:
        for report in REPORTS:
            await job.report(**report)
        return "fine"

    tool.handler(ordinary if kind == "ordinary" else asynchronous)
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, max_attempts=1)
        assert await handle.result(timeout=20) == "fine"
    [record] = await api.get_records(broker.client, handle.id)
    reports = [(each["progress"], each["message"], each["data"]) for each in record["reports"]]
    assert reports == ACCEPTED


async def test_a_refused_report_does_not_fail_its_job(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    broker = await serve(max_text_chars=16)
    tool = Tool("talkative", {}, url=broker.url)

    @tool.handler
    def work(job: Job) -> int:
        job.report(message="x" * 17)
        job.report(message="x" * 17)
        job.report(message="short")
        return job.reports_refused

    async with at_work(tool.work, Assigner(url=broker.url).assign), AsyncBroker(broker.url) as submitter:
        handle = await submitter.submit({}, id="a", max_attempts=1)
        assert await handle.result(timeout=20) == 2
    [record] = await api.get_records(broker.client, handle.id)
    assert [each["message"] for each in record["reports"]] == ["short"]
    assert caplog.text.count("a report was refused") == 1


async def test_a_report_on_ended_work_cancels_the_job(broker: Running, submitter: AsyncBroker) -> None:
    tool = Tool("slow", {}, url=broker.url)
    begun, go_on, stopped = threading.Event(), threading.Event(), threading.Event()

    @tool.handler
    def work(job: Job) -> None:
        begun.set()
        go_on.wait(20)
        job.report(0.5)
        if job.cancelled:
            stopped.set()

    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        await asyncio.to_thread(begun.wait, 20)
        await handle.cancel(force=True)
        go_on.set()
        assert await asyncio.to_thread(stopped.wait, 20)


async def test_values_of_libraries_are_converted_in_needs_payloads_and_results(
    broker: Running, submitter: AsyncBroker
) -> None:
    tool = Tool("numeric", {"n": 1}, url=broker.url)
    tool.handler(lambda job: {"mean": np.mean(job.payload["counts"]), "file": Path(job.payload["file"])})
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        payload = {"counts": np.array([1, 2]), "file": Path("a.raw")}
        handle = await submitter.submit({"n": np.int64(1)}, payload)
        assert await handle.result(timeout=20) == {"mean": 1.5, "file": "a.raw"}
        [many] = await submitter.submit_many([{"needs": {}, "payload": payload}])
        assert await many.result(timeout=20) == {"mean": 1.5, "file": "a.raw"}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["ordinary", "async"])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (threading.Lock(), r"the result could not be encoded as JSON: .* _thread\.lock has no JSON form"),
        ("\ud800", "the result could not be encoded as JSON: .*surrogates"),
        ("\0", r"the broker did not accept the result: .*(\\u0000|NUL)"),
    ],
    ids=["lock", "lone surrogate", "NUL"],
)
async def test_a_result_that_cannot_be_stored_is_computed_only_once(
    broker: Running, submitter: AsyncBroker, result: Any, message: str, asynchronous: bool
) -> None:
    tool, computed = Tool("odd", {}, url=broker.url), 0

    def ordinary(job: Job) -> Any:
        nonlocal computed
        computed += 1
        return result

    async def awaited(job: AsyncJob) -> Any:
        return ordinary(job)  # type: ignore[arg-type]

    tool.handler(awaited if asynchronous else ordinary)
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, max_attempts=3, retry_backoff_seconds=0)
        with pytest.raises(TaskFailedError, match=message):
            await handle.result(timeout=20)
    assert computed == 1


async def test_a_result_above_the_size_limit_is_computed_only_once(serve: Serve) -> None:
    broker = await serve(max_body_bytes=10_000)
    tool = Tool("large", {}, url=broker.url)
    tool.handler(lambda work: "x" * 20_000)
    async with at_work(tool.work, Assigner(url=broker.url).assign), AsyncBroker(broker.url) as submitter:
        handle = await submitter.submit({}, max_attempts=3, retry_backoff_seconds=0)
        with pytest.raises(TaskFailedError, match="the broker did not accept the result: The body is larger"):
            await handle.result(timeout=20)
    assert handle.task is not None
    assert handle.task.attempt == 1
    assert (await api.get(broker.client, "/v1/tools/large"))["load"] == 0


async def test_an_error_above_the_text_limit_is_shortened(serve: Serve) -> None:
    broker = await serve(max_text_chars=16)
    tool = Tool("wordy", {}, url=broker.url)

    @tool.handler
    def fail(job: Job) -> None:
        raise ValueError("x" * 100 + " the end")

    async with at_work(tool.work, Assigner(url=broker.url).assign), AsyncBroker(broker.url) as submitter:
        handle = await submitter.submit({}, id="a", max_attempts=2, retry_backoff_seconds=0)
        with pytest.raises(TaskFailedError, match="xxx the end"):
            await handle.result(timeout=20)
    assert handle.task is not None
    assert handle.task.attempt == 2
    assert (await api.get(broker.client, "/v1/tools/wordy"))["load"] == 0


@pytest.mark.parametrize(
    ("status", "code"), [(403, "forbidden"), (404, "not_found"), (415, "unsupported_media_type")]
)
async def test_a_completion_is_repeated_until_the_broker_accepts_it(
    broker: Running, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """If somebody corrects the key or the proxy, the computed result arrives."""
    monkeypatch.setattr("broker.client.job_run._FIRST_PAUSE_SECONDS", 0.01)
    problem = {"type": "t", "title": "t", "status": status, "detail": "d", "instance": "/", "code": code}
    content = json.dumps(problem)
    async with running_proxy(broker.url) as proxy, AsyncBroker(broker.url) as submitter:
        head = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: {PROBLEM_JSON}\r\n"
        proxy.own = f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode()
        proxy.only = "/complete"
        tool = Tool("steady", {}, url=proxy.url)
        tool.handler(lambda work: "done")
        async with at_work(tool.work, Assigner(url=broker.url).assign):
            handle = await submitter.submit({})
            await proxy.until_own_responses(3)
            proxy.own = None
            assert await handle.result(timeout=20) == "done"
    assert [record["outcome"] for record in await api.get_records(broker.client, handle.id)] == ["succeeded"]


class Calling:
    """A handler object whose `__call__` is an `async def`."""

    async def __call__(self, job: AsyncJob) -> Any:
        return await reporting(job, 1)


async def reporting(job: AsyncJob, number: int) -> Any:
    await job.report(0.5, "half")
    return number + job.payload


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@pytest.mark.parametrize(
    "handler",
    [
        Calling(),
        functools.partial(reporting, number=1),
        lambda work: reporting(work, 1),
        wrapped(Calling()),
        wrapped(lambda work: asyncio.ensure_future(reporting(work, 1), loop=work._loop)),
    ],
    ids=["callable object", "partial", "lambda", "wrapped", "future"],
)
async def test_an_awaitable_that_a_handler_returns_is_awaited(
    broker: Running, submitter: AsyncBroker, handler: Callable[..., Any]
) -> None:
    tool = Tool("asynchronous", {}, url=broker.url)
    tool.handler(handler)
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({}, 41, max_attempts=1)
        assert await handle.result(timeout=20) == 42
    [record] = await api.get_records(broker.client, handle.id)
    assert [each["message"] for each in record["reports"]] == ["half"]


@pytest.mark.usefixtures("fast_watching")
async def test_an_awaitable_result_is_cancelled_with_its_task(
    broker: Running, submitter: AsyncBroker
) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    tool = Tool("asynchronous", {}, url=broker.url)
    tool.handler(lambda work: wait())
    async with at_work(tool.work, Assigner(url=broker.url).assign):
        handle = await submitter.submit({})
        await asyncio.wait_for(begun.wait(), 20)
        await handle.cancel()
        await asyncio.wait_for(cancelled.wait(), 20)


async def test_an_empty_id_is_refused(submitter: AsyncBroker) -> None:
    for submit in (submitter.submit({}, id=""), submitter.submit_many([{"needs": {}, "id": ""}])):
        with pytest.raises(ProblemError) as error:
            await submit
        assert error.value.code == "validation_failed"


@pytest.mark.parametrize("id_", ["", ".", ".."])
async def test_an_impossible_id_is_an_unknown_task(submitter: AsyncBroker, id_: str) -> None:
    handle = submitter.handle(id_)
    for asking in (handle.wait(timeout=20), handle.cancel(), handle.retry(), handle.explain()):
        with pytest.raises(ProblemError) as error:
            await asking
        assert error.value.code == "task_not_found"


def test_the_clients_text_limit_is_the_brokers_default() -> None:
    assert Settings().max_text_chars == LONGEST_TEXT_CHARS
