"""Divide long computations in the event loop into time slices, so that other tasks run in between."""

import asyncio
import time
from collections.abc import Iterable

_SLICE_SECONDS = 0.02


async def run_in_time_slices(steps: Iterable[object], *, pause_seconds: float = 0.0) -> None:
    """Take all steps of a computation, and let other tasks run after each time slice.

    Args:
        steps: The steps; each should be short.
        pause_seconds: How long to pause after each slice, to use only a part of the time.
    """
    end = time.perf_counter() + _SLICE_SECONDS
    for _ in steps:
        if time.perf_counter() >= end:
            await asyncio.sleep(pause_seconds)
            end = time.perf_counter() + _SLICE_SECONDS
