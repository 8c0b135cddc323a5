"""Running scenarios, round by round, and telling how far it is."""

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

# What takes minutes, and is run where it is asked for.
LONG = ("growth", "backlog", "endurance")


async def run(
    stage: Stage, names: Sequence[str], *, rounds: int, size: Size, tell: Callable[[str, int], None]
) -> list[Measured]:
    """Measure scenarios.

    Args:
        stage: Where.
        names: Which.
        rounds: How often each.
        size: How much in each round.
        tell: Is told the scenario and how many of its rounds are done.

    Raises:
        BenchError: What was measured did not do what it is for.
    """
    measured = []
    for name in names:
        scenario = SCENARIOS[name]
        done = Measured(
            scenario=name, says=scenario.says, rounds=[], ratios=scenario.ratios, wanted=scenario.wanted
        )
        for number in range(rounds):
            tell(name, number)
            done.rounds.append(await scenario.round(stage, size))
        tell(name, rounds)
        measured.append(done)
    return measured
