"""Run scenarios, round by round."""

from collections.abc import Callable, Sequence

from broker.bench.figures import Measured
from broker.bench.scenarios import (
    Size,
    backlog,
    bulk,
    crowd,
    dispatch,
    drain,
    endurance,
    growth,
    idle,
    lifecycle,
    match,
    submit,
    tool,
)
from broker.bench.stage import Stage

_MODULES = (submit, lifecycle, drain, bulk, dispatch, tool, match, crowd, idle, growth, backlog, endurance)
SCENARIOS = {module.SCENARIO.name: module.SCENARIO for module in _MODULES}

# These take minutes, so they run only if the user names them.
LONG = ("growth", "backlog", "endurance")


async def run(
    stage: Stage, names: Sequence[str], *, rounds: int, size: Size, show_progress: Callable[[str, int], None]
) -> list[Measured]:
    """Measure each scenario in a number of rounds, and show the number of completed rounds.

    Raises:
        BenchError: A measurement failed.
    """
    measured = []
    for name in names:
        scenario = SCENARIOS[name]
        done = Measured(
            scenario=name, says=scenario.says, rounds=[], ratios=scenario.ratios, wanted=scenario.wanted
        )
        for number in range(rounds):
            show_progress(name, number)
            done.rounds.append(await scenario.round(stage, size))
        show_progress(name, rounds)
        measured.append(done)
    return measured
