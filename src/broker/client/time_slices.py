"""Divide long computations in the event loop into time slices, and let other tasks run between them."""

import asyncio
import time
from collections.abc import Iterable

_SLICE_SECONDS = 0.02


async def run_in_time_slices(steps: Iterable[object], *, pause_seconds: float = 0.0) -> None:
    """Run all steps of a computation, and let other tasks run after each time slice.

    Args:
        steps: The steps. Each should be short.
        pause_seconds: The pause after each slice. A longer pause leaves more time for other tasks.
    """
    end = time.perf_counter() + _SLICE_SECONDS
    for _ in steps:
        if time.perf_counter() >= end:
            await asyncio.sleep(pause_seconds)
            end = time.perf_counter() + _SLICE_SECONDS
