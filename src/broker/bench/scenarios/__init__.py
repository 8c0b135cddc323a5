"""The scenarios of the benchmark, one module for each."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from broker.bench.figures import Figures
from broker.bench.stage import Stage


class Size(Struct, frozen=True, kw_only=True):
    """The size of each round.

    Args:
        seconds: The duration of measurements that run for a time.
        share: The share of the usual number of tasks and tools.
    """

    seconds: float = 5.0
    share: float = 1.0

    def of(self, usual: int) -> int:
        """Return the share of a usual number, at least 1."""
        return max(1, round(usual * self.share))


class Scenario(Struct, frozen=True, kw_only=True):
    """A scenario.

    Args:
        name: The name on the command line.
        says: The description in one line.
        round: Measures the service and the limits of the machine once. Raises BenchError if a measurement
            fails.
        ratios: The names of the figures to divide, by the name of the ratio.
        wanted: The targets of the project, by the name of the figure or ratio.
    """

    name: str
    says: str
    round: Callable[[Stage, Size], Awaitable[Figures]]
    ratios: dict[str, tuple[str, str]] = {}
    wanted: dict[str, str] = {}
