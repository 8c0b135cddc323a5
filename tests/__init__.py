"""Tests of the broker: a folder for each package of `src/broker`, and shared helpers in `support`."""

from pathlib import Path

# The root folder of the repository.
ROOT = Path(__file__).parents[1]
