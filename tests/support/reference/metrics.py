"""Generate the reference page about metrics."""

from broker.telemetry import metric_definitions
from broker.telemetry.metric_definitions import MetricDefinition
from tests.support.reference import layout
from tests.support.reference.layout import code, table


def page() -> str:
    """Return the reference page about metrics, as Markdown."""
    definitions = [
        value for value in vars(metric_definitions).values() if isinstance(value, MetricDefinition)
    ]
    return layout.page(
        "Metrics",
        "`GET /metrics` returns these metrics in the Prometheus text format. If there are keys, it needs a"
        " key with the role `operator`. [Monitor the service](../operate/monitor.md) shows how to collect"
        " them.",
        "Prometheus appends `_total` to the name of a counter, and `_bucket`, `_sum` and `_count` to the"
        " name of a histogram.",
        table(
            ["metric", "type", "labels", "meaning"],
            [
                (
                    code(definition.name),
                    definition.kind,
                    ", ".join(map(code, definition.labels)),
                    definition.help,
                )
                for definition in definitions
            ],
        ),
    )
