"""Tests of the broker: a folder for each room of `src/broker`, and what they have in common in `support`."""

from pathlib import Path

# The folder of the repository.
ROOT = Path(__file__).parents[1]
