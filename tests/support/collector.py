"""A trace collector that receives spans over OTLP/HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span(NamedTuple):
    """A received span, with ids as in `traceparent`."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, object]
    service: str


class Collector:
    """A collector of spans. If it is `silent`, it reads requests and never responds."""

    def __init__(self, *, silent: bool = False) -> None:
        self.spans: list[Span] = []
        self.url = ""
        self.was_contacted = asyncio.Event()
        self._deaf = silent
        self._news = asyncio.Condition()

    async def wait_for(self, *names: str) -> dict[str, Span]:
        """Wait for spans of all these names, and return them."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: set(names) <= {span.name for span in self.spans})
        return {span.name: span for span in self.spans}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Respond to the requests of a connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.was_contacted.set()
                if self._deaf:
                    continue
                assert head.startswith(b"POST /v1/traces ")
                async with self._news:
                    self.spans += _spans(body)
                    self._news.notify_all()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def collecting(*, silent: bool = False) -> AsyncIterator[Collector]:
    """Run a collector until the end of the block."""
    collector = Collector(silent=silent)
    server = await asyncio.start_server(collector.serve, "127.0.0.1", 0)
    collector.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield collector


def _spans(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(body)
    return [
        Span(
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            attributes=_values(span.attributes),
            service=str(_values(of_service.resource.attributes).get("service.name")),
        )
        for of_service in request.resource_spans
        for of_scope in of_service.scope_spans
        for span in of_scope.spans
    ]


def _values(attributes: object) -> dict[str, object]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in attributes  # type: ignore[attr-defined]
    }
