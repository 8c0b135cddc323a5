"""OpenTelemetry, where the environment asks for it: a span around every request.

It is switched on by the variables that every service is switched on with (`OTEL_EXPORTER_OTLP_ENDPOINT` or
`OTEL_TRACES_EXPORTER`), and needs the extra `otel`. Without them nothing of it is imported.
"""

import os
from collections.abc import Mapping

import structlog
from litestar.types import ASGIApp

log = structlog.get_logger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wanted(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The exporters that the environment asks for, by their OpenTelemetry names; none: no traces."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    named = [name.strip() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if not named and any(environment.get(name) for name in _ENDPOINTS):
        named = ["otlp"]
    return [name for name in named if name != "none"]


def traced(app: ASGIApp, paths: list[str]) -> ASGIApp:
    """The application, traced if the environment asks for it; else as it is.

    Args:
        app: The application.
        paths: Its paths, with their parameters like `{task_id}`.
    """
    if not (names := wanted()):
        return app
    try:
        # Only whoever traces needs it.
        from broker.telemetry.span_export import provider  # noqa: PLC0415
        from broker.telemetry.spans import Traced  # noqa: PLC0415

        spans = provider(names)
    except ImportError as error:
        log.warning(
            "traces are asked for, and OpenTelemetry is not installed: there are none",
            missing=error.name,
            to_change_that="pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
        )
        return app
    except (ValueError, TypeError, LookupError, RuntimeError, OSError) as error:
        # OpenTelemetry takes its variables as they come.
        log.warning(
            "traces cannot be begun, and there are none: is one of the variables OTEL_… misspelt?",
            why=f"{type(error).__name__}: {error}",
        )
        return app
    return Traced(app, paths, spans) if spans else app
