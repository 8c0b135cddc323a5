"""Slices: long work in the event loop, between which others that wait for the loop have their turn."""

import asyncio
import time
from collections.abc import Iterable

_SLICE_SECONDS = 0.02


async def in_slices(steps: Iterable[object], *, pause_seconds: float = 0.0) -> None:
    """Take all steps; after a while of it, others that wait for the loop go first.

    Args:
        steps: Each of them should be short.
        pause_seconds: So long it rests after each slice, so as to take a part of the time only.
    """
    end = time.perf_counter() + _SLICE_SECONDS
    for _ in steps:
        if time.perf_counter() >= end:
            await asyncio.sleep(pause_seconds)
            end = time.perf_counter() + _SLICE_SECONDS
