"""Show the measurements: as a table for people, as JSON for programs."""

import os
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from broker.bench.figures import Measured


def figures_table(measured: Sequence[Measured]) -> Table:
    """Return a table of the figures of all scenarios: medians, spread, and the project's targets."""
    table = Table(title=", ".join(machine().values()), title_justify="left", pad_edge=False)
    table.add_column("scenario")
    table.add_column("figure")
    for heading in ("median", "least", "greatest", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario in measured:
        name = scenario.scenario
        for figure, spread in scenario.summary().items():
            values = (spread.median, spread.least, spread.greatest)
            table.add_row(name, figure, *map(_number, values), scenario.wanted.get(figure, ""))
            name = ""
        table.add_section()
    return table


def document(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the figures of every round, with the machine and the time."""
    return {
        "at": datetime.now(UTC),
        "command": ["broker", *sys.argv[1:]],
        "machine": machine(),
        "scenarios": [
            msgspec.to_builtins(scenario) | {"summary": msgspec.to_builtins(scenario.summary())}
            for scenario in measured
        ],
    }


def machine() -> dict[str, str]:
    """Return the facts about this machine that affect the figures."""
    return {
        "cores": f"{os.cpu_count()} cores",
        "cpu": _cpu(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": f"Python {platform.python_version()}",
        "broker": f"broker {version('broker')}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
