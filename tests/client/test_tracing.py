"""Traces of programs that use the client, from the submitter's span to the handler's span."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, Tracer

from broker.client import Assigner, AsyncBroker, AsyncJob, Broker, Executor, FailedError, Job, Tool
from tests.conftest import Running
from tests.support import api, cli
from tests.support.processes import clean_environment
from tests.support.shared import SHARED_BROKER

pytestmark, database, broker, sql, http = SHARED_BROKER

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CONTEXT = {"traceparent": PARENT, "tracestate": "lab=beam-4"}


class Tracing:
    """A program that traces, with its ended spans."""

    def __init__(self, tracer: Tracer, exporter: InMemorySpanExporter) -> None:
        self.tracer = tracer
        self._exporter = exporter

    def spans(self, name: str = "work t") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def span(self, name: str = "work t") -> ReadableSpan:
        [span] = self.spans(name)
        return span


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # `set_tracer_provider` can be called only once in a process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    return Tracing(trace.get_tracer("program"), exporter)


@pytest.fixture(autouse=True)
async def no_trace_in_the_environment(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    monkeypatch.delenv("TRACESTATE", raising=False)


@asynccontextmanager
async def doing(tool: Tool) -> AsyncIterator[None]:
    """Run a tool and an assigner while the block runs."""
    tasks = [asyncio.create_task(work()) for work in (tool.work, Assigner(url=tool._url).assign)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def at_work(url: str, handler: Callable[[Any], Any]) -> AbstractAsyncContextManager[None]:
    """Run the tool `t` with a handler while the block runs."""
    tool = Tool("t", {}, url=url)
    tool.handler(handler)
    return doing(tool)


def span_id(_: object) -> str:
    """Return the id of the handler's span."""
    return f"{trace.get_current_span().get_span_context().span_id:x}"


async def async_span_id(job: AsyncJob) -> str:
    return span_id(job)


def mapped(job: Job) -> dict[str, str]:
    return dict(job.trace_context)


# With a tracer


@pytest.mark.parametrize("handler", [span_id, async_span_id])
async def test_the_span_of_a_handler_is_a_child_of_the_submitters_span(
    broker: Running, tracing: Tracing, handler: Callable[[Any], Any]
) -> None:
    async with AsyncBroker(broker.url) as submitter, at_work(broker.url, handler):
        with tracing.tracer.start_as_current_span("submit"):
            handle = await submitter.submit({}, id="a")
        result = await handle.result(timeout=20)
    submitted, done = tracing.span("submit"), tracing.span()
    assert done.parent is not None
    assert (done.parent.span_id, done.context.trace_id) == (
        submitted.context.span_id,
        submitted.context.trace_id,
    )
    assert result == f"{done.context.span_id:x}"
    assert done.kind is SpanKind.CONSUMER
    assert done.status.status_code is StatusCode.UNSET
    attributes = dict(done.attributes or {})
    assert attributes.pop("broker.work_id")
    assert attributes == {
        "messaging.system": "broker",
        "messaging.operation.type": "process",
        "messaging.operation.name": "work",
        "messaging.destination.name": "t",
        "messaging.message.id": "a",
        "broker.task_id": "a",
        "broker.tool_id": "t",
        "broker.attempt": 1,
        "broker.outcome": "succeeded",
    }


async def test_the_span_of_a_handler_does_not_last_until_there_is_other_work(
    broker: Running, tracing: Tracing
) -> None:
    async with AsyncBroker(broker.url) as submitter, at_work(broker.url, span_id):
        await (await submitter.submit({}, id="a")).result(timeout=20)
        async with asyncio.timeout(20):
            while not tracing.spans():
                await asyncio.sleep(0.01)


async def test_a_synchronous_program_submits_in_its_current_span(broker: Running, tracing: Tracing) -> None:
    def submit() -> None:
        with Broker(broker.url) as submitter, tracing.tracer.start_as_current_span("submit"):
            handles = [submitter.submit({}, id="a"), *submitter.submit_many([{"needs": {}, "id": "b"}])]
        with Broker(broker.url) as waiter:
            for handle in handles:
                waiter.handle(handle.id).result(timeout=20)

    async with at_work(broker.url, span_id):
        await asyncio.to_thread(submit)
    parents = {span.parent.span_id for span in tracing.spans() if span.parent}
    assert parents == {tracing.span("submit").context.span_id}
    assert len(tracing.spans()) == 2


async def test_each_call_of_an_executor_belongs_to_the_trace_of_its_caller(
    broker: Running, tracing: Tracing
) -> None:
    def call() -> None:
        with Executor(url=broker.url) as executor:
            for _ in range(10):
                with tracing.tracer.start_as_current_span("submit"):
                    executor.submit(textwrap.dedent, " a")

    async with doing(Tool.calling("t", textwrap.dedent, capacity=10, url=broker.url)):
        await asyncio.to_thread(call)
    submitted = [span.context.span_id for span in tracing.spans("submit")]
    assert sorted(span.parent.span_id for span in tracing.spans() if span.parent) == sorted(submitted)
    assert len(set(submitted)) == 10


async def test_a_task_that_was_submitted_without_a_trace_starts_a_new_one(
    broker: Running, tracing: Tracing
) -> None:
    async with AsyncBroker(broker.url) as submitter:
        with tracing.tracer.start_as_current_span("main"):
            async with at_work(broker.url, span_id):
                await api.add_task(broker.client, "a")
                await submitter.handle("a").result(timeout=20)
    assert tracing.span().parent is None


async def test_the_span_of_a_failed_handler_has_its_error(broker: Running, tracing: Tracing) -> None:
    def fail(job: Job) -> None:
        if job.task_id == "a":
            raise ZeroDivisionError("by nothing")
        raise FailedError("no beam", retry=False)

    async with AsyncBroker(broker.url) as submitter, at_work(broker.url, fail):
        for id_ in ("a", "b"):
            handle = await submitter.submit({}, id=id_, max_attempts=1)
            await handle.wait(timeout=20)
    spans = {(span.attributes or {})["broker.task_id"]: span for span in tracing.spans()}
    assert [spans[id_].status.description for id_ in ("a", "b")] == [
        "ZeroDivisionError: by nothing",
        "no beam",
    ]
    assert [event.name for event in spans["a"].events] == ["exception"]
    assert {span.status.status_code for span in spans.values()} == {StatusCode.ERROR}


# Without a tracer


async def test_a_job_has_the_trace_context_for_any_tracer(broker: Running, http: httpx.AsyncClient) -> None:
    async with AsyncBroker(broker.url) as submitter, at_work(broker.url, mapped):
        for id_, context in (("a", CONTEXT), ("b", {})):
            assert (
                await http.post("/v1/tasks", json={"id": id_, "needs": {}}, headers=context)
            ).status_code == 201
            assert await submitter.handle(id_).result(timeout=20) == context


async def test_a_program_that_does_not_trace_imports_no_opentelemetry(
    broker: Running, http: httpx.AsyncClient
) -> None:
    program = f"""
import sys
sys.modules["opentelemetry"] = None
from broker.client import Broker
with Broker({broker.url!r}) as broker:
    broker.submit({{}}, id="a")
assert not [name for name in sys.modules if name.startswith("opentelemetry.")]
"""
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.decode()) == (0, "")
    assert (await api.get(http, "/v1/tasks/a"))["state"] == "available"


async def test_a_trace_passes_from_a_shell_through_the_broker_to_a_program(
    broker: Running, http: httpx.AsyncClient, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    """`broker submit` reads the trace from its environment. `broker tool` passes it to its program."""
    script = 'printf \'["%s","%s"]\' "$TRACEPARENT" "$TRACESTATE"'
    command = ["tool", "--id", "t", "--skills", "{}", "--scratch", str(tmp_path), "--", "sh", "-c", script]
    parent = {"TRACEPARENT": PARENT, "TRACESTATE": "lab=beam-4"}
    mine = {"TRACEPARENT": PARENT.replace("4bf9", "0000")}
    async with cli.running(broker.url, *command, **mine):
        for task, environment in (("a", parent), ("b", {"TRACEPARENT": "\udcff"}), ("c", {})):
            ended = await cli.run(broker.url, "submit", "--id", task, "--needs", "{}", **environment)
            assert ended.status == 0, ended.err
        async with asyncio.timeout(20):
            while (await http.get("/v1/tools/t")).status_code != 200:
                await asyncio.sleep(0.01)
        for task, seen in (("a", [PARENT, "lab=beam-4"]), ("b", ["", ""]), ("c", ["", ""])):
            await api.assign(http, task)
            ended_task = await api.get(http, f"/v1/tasks/{task}", wait=20)
            assert ended_task["result"] == seen
