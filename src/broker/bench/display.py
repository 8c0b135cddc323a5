"""What is shown of the measurements: a table for people, JSON for programs."""

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

from broker.bench.figures import Measured, Spread


def table(measured: Sequence[Measured]) -> Table:
    """The figures of all scenarios: medians with their spread, and what the project wants of them."""
    shown = Table(title=", ".join(machine().values()), title_justify="left", pad_edge=False)
    shown.add_column("scenario")
    shown.add_column("figure")
    for heading in ("median", "least", "greatest", "wanted"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in measured:
        name = each.scenario
        for figure, spread in each.summary().items():
            values = (spread.median, spread.least, spread.greatest)
            shown.add_row(name, figure, *map(_number, values), each.wanted.get(figure, ""))
            name = ""
        shown.add_section()
    return shown


def document(measured: Sequence[Measured]) -> dict[str, Any]:
    """All that was measured, round by round, with the machine and the moment."""
    return {
        "at": datetime.now(UTC),
        "command": ["broker", *sys.argv[1:]],
        "machine": machine(),
        "scenarios": [msgspec.to_builtins(each) | {"summary": _plain(each.summary())} for each in measured],
    }


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "cores": f"{os.cpu_count()} cores",
        "cpu": _cpu(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": f"Python {platform.python_version()}",
        "broker": f"broker {version('broker')}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def _plain(summary: dict[str, Spread]) -> dict[str, Any]:
    return {name: msgspec.to_builtins(spread) for name, spread in summary.items()}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
