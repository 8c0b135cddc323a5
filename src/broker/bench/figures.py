"""Figures of each round, and their summary over all rounds."""

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct, field

# The figures of a round by their names, such as `tasks/s`.
Figures = dict[str, float]


class Measured(Struct, kw_only=True):
    """The figures of each round of a scenario, with the description, ratios and targets of the scenario."""

    scenario: str
    says: str
    rounds: list[Figures]
    ratios: dict[str, tuple[str, str]] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)

    def summary(self) -> "dict[str, Spread]":
        """Return the median and the spread of every figure and ratio."""
        spreads = {
            name: Spread.of([round_[name] for round_ in self.rounds if name in round_])
            for name in (self.rounds[0] if self.rounds else ())
        }
        for name, (upper, lower) in self.ratios.items():
            both = [round_ for round_ in self.rounds if {upper, lower} <= round_.keys()]
            if ratios := [round_[upper] / round_[lower] for round_ in both if round_[lower]]:
                spreads[name] = Spread.of(ratios)
        return spreads


class Spread(Struct, kw_only=True):
    """The median, the least and the greatest of some values."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least one value."""
        return cls(median=statistics.median(values), least=min(values), greatest=max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that a share of the values (0 to 1) does not exceed."""
    ordered = sorted(values)
    # Rounded, because 0.07 * 100 is a little more than 7.
    return ordered[max(math.ceil(round(share * len(ordered), 6)) - 1, 0)]


def latencies(seconds: Sequence[float], prefix: str = "") -> Figures:
    """Return the 50th, 95th and 99th percentiles in milliseconds."""
    return {f"{prefix}p{share} ms": percentile(seconds, share / 100) * 1000 for share in (50, 95, 99)}
