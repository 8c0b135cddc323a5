"""Where spans go: what the standard variables say of exporters, and of the service itself."""

import os
from importlib.metadata import entry_points, version
from uuid import uuid4

import structlog
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

log = structlog.get_logger(__name__)

_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_PACKAGES = {
    "otlp_proto_http": "opentelemetry-exporter-otlp-proto-http",
    "otlp_proto_grpc": "opentelemetry-exporter-otlp-proto-grpc",
}


def provider(names: list[str]) -> TracerProvider | None:
    """What makes spans, and sends them to these exporters; None: to none, which is warned of.

    Args:
        names: OpenTelemetry's names of exporters, such as `otlp` and `console`.
    """
    exporters = [exporter for name in names if (exporter := _exporter(name))]
    if not exporters:
        return None
    # The end of the process does not wait for spans: the server's own end has done what it can.
    made = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    for exporter in exporters:
        made.add_span_processor(BatchSpanProcessor(exporter))
    log.info("traces are on", exporters=names)
    return made


def _exporter(name: str) -> SpanExporter | None:
    """An exporter, of whatever package has one of that name."""
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = _PROTOCOLS.get(protocol, f"otlp with the protocol {protocol}")
    found = entry_points(group="opentelemetry_traces_exporter", name=name)
    try:
        [entry] = found
        made: SpanExporter = entry.load()()
    except (ValueError, ImportError) as error:
        advice = f"pip install {_PACKAGES[name]}" if name in _PACKAGES else "install the package that has it"
        log.warning("this exporter of traces cannot be had", name=name, why=str(error), to_change_that=advice)
        return None
    return made


def _resource() -> Resource:
    """What is told of this process with every span; what the environment says goes first."""
    ours = {
        "service.name": "broker",
        "service.version": version("broker"),
        "service.instance.id": str(uuid4()),
    }
    theirs = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in theirs})
