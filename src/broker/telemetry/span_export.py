"""Create span exporters from the standard variables of OpenTelemetry."""

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
    """Return a provider that sends spans to exporters such as `otlp`, or None if none of them exists.

    The function logs a warning for each missing exporter.
    """
    exporters = [exporter for name in names if (exporter := _exporter(name))]
    if not exporters:
        return None
    # The process does not wait for spans when it exits, because the server has already flushed them.
    tracer_provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    for exporter in exporters:
        tracer_provider.add_span_processor(BatchSpanProcessor(exporter))
    log.info("tracing started", exporters=names)
    return tracer_provider


def _exporter(name: str) -> SpanExporter | None:
    """Return an exporter from the package that provides it, or None without such a package."""
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = _PROTOCOLS.get(protocol, f"otlp with the protocol {protocol}")
    entries = entry_points(group="opentelemetry_traces_exporter", name=name)
    try:
        [entry] = entries
        exporter: SpanExporter = entry.load()()
    except (ValueError, ImportError) as error:
        advice = f"pip install {_PACKAGES[name]}" if name in _PACKAGES else "install the exporter's package"
        log.warning("trace exporter not found", name=name, error=str(error), advice=advice)
        return None
    return exporter


def _resource() -> Resource:
    """Return the attributes of this process; those of the environment take precedence."""
    ours = {
        "service.name": "broker",
        "service.version": version("broker"),
        "service.instance.id": str(uuid4()),
    }
    theirs = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in theirs})
