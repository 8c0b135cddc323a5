"""Figures: what was measured in each round, and what is said about all of them."""

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct, field

# A round's figures by their names, such as `tasks/s`.
Round = dict[str, float]


class Measured(Struct, kw_only=True):
    """What a scenario measured, round by round.

    Args:
        scenario: Its name.
        says: What it does, in a line.
        rounds: The figures of each round.
        ratios: Figures to compare: for the name of the ratio, what is divided by what.
        wanted: The bounds that the project sets itself, for figures and ratios.
    """

    scenario: str
    says: str
    rounds: list[Round]
    ratios: dict[str, tuple[str, str]] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)

    def summary(self) -> "dict[str, Spread]":
        """Every figure and every ratio with its median and its spread over the rounds."""
        found = {name: Spread.of(self._values(name)) for name in self.rounds[0]} if self.rounds else {}
        for name, (upper, lower) in self.ratios.items():
            pairs = [(each[upper], each[lower]) for each in self.rounds if upper in each and lower in each]
            if ratios := [above / below for above, below in pairs if below]:
                found[name] = Spread.of(ratios)
        return found

    def _values(self, name: str) -> list[float]:
        return [each[name] for each in self.rounds if name in each]


class Spread(Struct, kw_only=True):
    """The median of some values, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(median=statistics.median(values), least=min(values), greatest=max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed (the nearest rank); 0 to 1."""
    ordered = sorted(values)
    # Rounded, for 0.07 * 100 is a little more than 7.
    return ordered[max(math.ceil(round(share * len(ordered), 6)) - 1, 0)]


def latencies(seconds: Sequence[float], prefix: str = "") -> Round:
    """p50, p95 and p99 in milliseconds."""
    return {f"{prefix}p{share} ms": percentile(seconds, share / 100) * 1000 for share in (50, 95, 99)}
