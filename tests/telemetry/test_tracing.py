"""Traces of the service: the standard variables turn them on, and they never affect a request."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from broker.http.request_log import RequestLog
from broker.server.http_server import create_server
from broker.settings import Settings
from broker.telemetry.tracing import wanted
from tests.client.test_tracing import PARENT
from tests.support.api import add_task, add_tool, assign, complete_work
from tests.support.collector import Collector, collecting
from tests.support.processes import clean_environment, free_port, serving, wait_until_ready

TRACE, SPAN = PARENT.split("-")[1:3]


@contextmanager
def traced(database: str, collector: Collector, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a service that sends its spans to a collector."""
    given = {"BROKER_DATABASE_URL": database, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **more}
    with serving(**given) as (process, url):
        yield process, url


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4318"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://there:4318/v1/traces"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4318", "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4318", "OTEL_SDK_DISABLED": "True"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
        ({"OTEL_SERVICE_NAME": "broker"}, []),
    ],
)
def test_the_standard_variables_turn_tracing_on(environment: dict[str, str], exporters: list[str]) -> None:
    assert wanted(environment) == exporters


async def test_the_application_is_not_wrapped_without_tracing(database: str) -> None:
    server = create_server(Settings(database_url=database))
    assert isinstance(server.config.app, RequestLog)
    await server.service.store.close()


async def test_one_trace_connects_the_submitter_the_broker_and_the_tool(database: str) -> None:
    """The program is both: it submits within its own span, and does the work."""
    async with collecting() as collector:
        with traced(database, collector, OTEL_BSP_SCHEDULE_DELAY="50") as (_, url):
            await wait_until_ready(url)
            program = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                PROGRAM,
                env=clean_environment(
                    BROKER_URL=url, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="laboratory"
                ),
            )
            async with asyncio.timeout(30):
                assert await program.wait() == 0
            spans = await collector.wait_for("measure", "POST /v1/tasks", "work t", "POST /v1/work/complete")
    measure, work = spans["measure"], spans["work t"]
    assert (measure.service, work.service, spans["POST /v1/tasks"].service) == (
        *("laboratory",) * 2,
        "broker",
    )
    # Each request is a child of the span in which it was sent, and all belong to one trace.
    assert {
        name: spans[name].parent
        for name in ("POST /v1/tasks", "work t", "POST /v1/work/{work_id}/reports", "POST /v1/work/complete")
    } == {
        "POST /v1/tasks": measure.id,
        "work t": measure.id,
        "POST /v1/work/{work_id}/reports": work.id,
        "POST /v1/work/complete": work.id,
    }
    named = [span for span in collector.spans if span.trace == measure.trace]
    assert {"measure", "POST /v1/tasks", "work t", "GET /v1/tasks/{task_id}"} <= {span.name for span in named}
    report = spans["POST /v1/work/{work_id}/reports"].attributes
    assert report["broker.work_id"] == work.attributes["broker.work_id"]
    assert (report["http.response.status_code"], report["http.route"]) == (
        201,
        "/v1/work/{work_id}/reports",
    )


PROGRAM = """
import asyncio
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from broker.client import Assigner, AsyncBroker, Tool

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
tool = Tool("t", {})

@tool.handler
def process(job):
    job.report(0.5)
    return job.payload

async def main():
    working = [asyncio.create_task(doing()) for doing in (tool.work, Assigner().assign)]
    async with AsyncBroker() as broker:
        with trace.get_tracer("laboratory").start_as_current_span("measure"):
            handle = await broker.submit({}, 1)
            assert await handle.result(timeout=20) == 1
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)

asyncio.run(main())
provider.shutdown()
"""


async def test_spans_have_route_ids_and_status_and_the_last_are_sent_at_shutdown(database: str) -> None:
    async with collecting() as collector:
        with traced(database, collector, OTEL_BSP_SCHEDULE_DELAY="60000", BROKER_ACCESS_LOG="1") as (
            process,
            url,
        ):
            await wait_until_ready(url)
            async with httpx.AsyncClient(base_url=url) as http:
                await add_tool(http)
                await http.post("/v1/tasks", json={"id": "a", "needs": {}}, headers={"traceparent": PARENT})
                work = await assign(http)
                await complete_work(http, work["id"])
                assert (await http.get("/v1/tools/t/work?wait=0.25")).status_code == 200
                assert (await http.get("/v1/nowhere/secret?needs=secret")).status_code == 404
                assert (await http.get("/metrics")).status_code == 200
            assert collector.spans == []
            process.send_signal(signal.SIGTERM)
            _, output = await asyncio.to_thread(process.communicate, timeout=5)
            assert process.returncode == 0
        spans = await collector.wait_for("GET /v1/tools/{tool_id}/work", "POST /v1/tasks", "GET")
    submitted, polled, lost = (
        spans[name] for name in ("POST /v1/tasks", "GET /v1/tools/{tool_id}/work", "GET")
    )
    assert (submitted.trace, submitted.parent) == (TRACE, SPAN)
    # The log names the trace.
    assert f'"trace_id": "{TRACE}"'.encode() in output
    assert polled.attributes["broker.tool_id"] == "t"
    assert polled.attributes["broker.wait_seconds"] == 0.25
    assert (lost.attributes["http.response.status_code"], "http.route" in lost.attributes) == (404, False)
    assert not any("health" in span.name or "metrics" in span.name for span in collector.spans)
    assert "needs=secret" not in str(collector.spans)


async def test_tracing_does_not_change_any_response(database: str) -> None:
    async def status(url: str, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        invalid = b"traceparent: \xff\r\ntracestate: \xff\r\nbaggage: \xff=\xff;;,\r\n"
        writer.write(request + b" HTTP/1.1\r\nHost: x\r\n" + invalid + b"\r\n")
        status_line = await reader.readuntil(b"\r\n")
        writer.close()
        return status_line

    async with collecting() as collector:
        with serving(BROKER_DATABASE_URL=database) as (_, plain), traced(database, collector) as (_, url):
            await asyncio.gather(wait_until_ready(plain), wait_until_ready(url))
            for request in (
                b"GET /v1/tasks?needs=\xff",
                b"GET /v1/tasks/%ff%00",
                b"BREW /v1/tasks",
                b"GET /\xff",
            ):
                assert await status(url, request) == await status(plain, request)


# Shutdown


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_silent_or_missing_collector_does_not_delay_shutdown(database: str, is_there: bool) -> None:
    async with collecting(silent=True) as collector:
        if not is_there:
            collector.url = f"http://127.0.0.1:{free_port()}"
        with traced(database, collector, OTEL_BSP_SCHEDULE_DELAY="60000") as (process, url):
            await wait_until_ready(url)
            async with httpx.AsyncClient(base_url=url) as http:
                await add_task(http)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 5) == 0
            assert time.monotonic() - began < 2
        assert collector.was_contacted.is_set() == is_there


# Missing packages


async def test_the_service_serves_without_opentelemetry_and_logs_what_to_install(database: str) -> None:
    port = free_port()
    program = f"""
import sys
sys.modules["opentelemetry"] = None
from broker.cli import main
main(["serve", "--port", "{port}"])
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        env=clean_environment(BROKER_DATABASE_URL=database, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1"),
        stderr=asyncio.subprocess.PIPE,
    )
    await wait_until_ready(f"http://127.0.0.1:{port}")
    process.send_signal(signal.SIGTERM)
    _, output = await process.communicate()
    assert process.returncode == 0
    assert b"OpenTelemetry is not installed" in output
    assert b"pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in output
    assert b"Traceback" not in output


async def served(database: str, given: dict[str, str]) -> bytes:
    """Run a service with these variables until it serves, stop it, and return its output."""
    with serving(BROKER_DATABASE_URL=database, **given) as (process, url):
        await wait_until_ready(url)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 5) == 0
        assert process.stderr is not None
        return process.stderr.read()


async def test_the_service_serves_without_an_exporter_and_logs_its_package(database: str) -> None:
    given = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert b"pip install opentelemetry-exporter-otlp-proto-grpc" in await served(database, given)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_PROPAGATORS", "nonsense"), ("OTEL_BSP_SCHEDULE_DELAY", "-1")],
)
async def test_the_service_serves_with_an_invalid_variable_and_logs_it(
    database: str, variable: str, value: str
) -> None:
    given = {"OTEL_TRACES_EXPORTER": "console", variable: value}
    output = await served(database, given)
    assert b"tracing failed to start" in output
    assert b"Traceback" not in output
