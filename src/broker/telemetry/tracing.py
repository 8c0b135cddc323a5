"""Trace requests with OpenTelemetry, if the environment asks for it.

The standard variables `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_TRACES_EXPORTER` switch it on. It needs the
extra `otel`, and is not imported otherwise.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog
from litestar.types import ASGIApp

if TYPE_CHECKING:
    from broker.telemetry.spans import MatchPath

log = structlog.get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the OpenTelemetry names of the exporters in the environment. Without any, tracing is off."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = [name.strip() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named and any(environment.get(name) for name in _ENDPOINTS):
        named = ["otlp"]
    return [name for name in named if name != "none"]


def traced(app: ASGIApp, match_path: "MatchPath") -> ASGIApp:
    """Return the application, with tracing if the environment asks for it."""
    if not (names := wanted()):
        return app
    try:
        from broker.telemetry.span_export import provider  # noqa: PLC0415
        from broker.telemetry.spans import Traced  # noqa: PLC0415

        spans = provider(names)
    except ImportError as error:
        log.warning(
            "tracing failed to start because OpenTelemetry is not installed",
            missing=error.name,
            advice="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
        )
        return app
    except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
        # OpenTelemetry does not check its variables.
        log.warning(
            "tracing failed to start",
            error=f"{type(error).__name__}: {error}",
            advice="check the values of the OTEL_… variables",
        )
        return app
    return Traced(app, match_path, spans) if spans else app
