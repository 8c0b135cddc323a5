"""Show the measurements: as tables for people, as JSON for programs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.table import Table

from broker.bench.figures import Measured
from broker.bench.meter import COSTS


def figures_table(measured: Sequence[Measured], title: str) -> Table:
    """Return a table of the figures of all scenarios: medians, spread, and the project's targets."""
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("scenario")
    table.add_column("figure")
    for heading in ("median", "least", "greatest", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario in measured:
        name = scenario.scenario
        for figure, spread in scenario.summary().items():
            if figure in COSTS:
                continue
            values = (spread.median, spread.least, spread.greatest)
            table.add_row(name, figure, *map(number, values), scenario.wanted.get(figure, ""))
            name = ""
        table.add_section()
    return table


def costs_table(measured: Iterable[Measured]) -> Table | None:
    """Return a table of what a task costs in each scenario (medians), or None if nothing was measured."""
    table = Table(title="The cost of a task (medians)", title_justify="left", pad_edge=False)
    table.add_column("scenario")
    for cost in COSTS:
        table.add_column(_heading(cost), justify="right")
    for scenario in measured:
        summary = scenario.summary()
        cells = [
            _with_target(summary[cost].median, scenario.wanted.get(cost)) if cost in summary else ""
            for cost in COSTS
        ]
        if any(cells):
            table.add_row(scenario.scenario, *cells)
    return table if table.row_count else None


def document(measured: Sequence[Measured], machine: Mapping[str, str]) -> dict[str, Any]:
    """Return the figures of every round, with the machine and the time."""
    return {
        "at": datetime.now(UTC),
        "command": ["broker", *sys.argv[1:]],
        "machine": machine,
        "scenarios": [
            msgspec.to_builtins(scenario) | {"summary": msgspec.to_builtins(scenario.summary())}
            for scenario in measured
        ],
    }


def number(value: float) -> str:
    """Return a figure with about three digits."""
    if 0 < value < 0.01:
        return f"{value:.1g}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _heading(cost: str) -> str:
    """Return the name of a cost, in two lines."""
    return cost.removesuffix("/task").replace(" ", "\n", 1)


def _with_target(value: float, target: str | None) -> str:
    return number(value) if target is None else f"{number(value)} ({target})"
