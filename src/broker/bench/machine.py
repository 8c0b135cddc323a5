"""Describe what the figures depend on: the machine, and the versions of the programs."""

import os
import platform
import sysconfig
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any


def machine(postgres: str | None = None) -> dict[str, str]:
    """Return the facts about this machine that affect the figures.

    Args:
        postgres: The version of PostgreSQL; None if another machine runs it.
    """
    facts = {
        "cores": f"{os.cpu_count()} cores",
        "cpu": _cpu(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": f"Python {platform.python_version()} ({optimizations(sysconfig.get_config_vars())})",
        "postgres": f"PostgreSQL {postgres}",
        "broker": f"broker {version('broker')}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    if postgres is None:
        del facts["postgres"]
    return facts


def optimizations(variables: Mapping[str, Any]) -> str:
    """Return how the interpreter was optimized when it was built, which affects the figures by a tenth.

    Args:
        variables: The variables of the build, as `sysconfig` returns them.
    """
    names = ("CONFIG_ARGS", "PY_CFLAGS_NODIST", "PY_LDFLAGS_NODIST")
    flags = " ".join(str(variables.get(name) or "") for name in names)
    # A package of a distribution may pass the flags of the compiler itself.
    marks = {
        "PGO": ("--enable-optimizations", "-fprofile-use", "-fprofile-instr-use"),
        "LTO": ("--with-lto", "-flto"),
    }
    done = [name for name, options in marks.items() if any(option in flags for option in options)]
    return f"built with {' and '.join(done)}" if done else "built without PGO and LTO, so slower"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
