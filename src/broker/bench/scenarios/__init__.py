"""What is measured: a module for each scenario."""

from collections.abc import Awaitable, Callable

from msgspec import Struct

from broker.bench.figures import Round
from broker.bench.stage import Stage


class Size(Struct, frozen=True, kw_only=True):
    """How much is measured.

    Args:
        seconds: How long what is measured by time goes on, in each round.
        share: Of the usual number of tasks and tools, so many are taken.
    """

    seconds: float = 5.0
    share: float = 1.0

    def of(self, usual: int) -> int:
        """The number that is taken of a usual one; at least one."""
        return max(1, round(usual * self.share))


class Scenario(Struct, frozen=True, kw_only=True):
    """Something to measure.

    Args:
        name: What it is called on the command line.
        says: What it does, in a line.
        round: Measures once, and the ceilings beside it; raises BenchError where what was measured did not
            do what it is for.
        ratios: Figures to compare: for the name of the ratio, what is divided by what.
        wanted: The bounds that the project sets itself, for figures and ratios.
    """

    name: str
    says: str
    round: Callable[[Stage, Size], Awaitable[Round]]
    ratios: dict[str, tuple[str, str]] = {}
    wanted: dict[str, str] = {}
