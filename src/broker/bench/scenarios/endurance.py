"""`endurance`: the memory of the service over a large number of life cycles."""

from broker.bench.figures import Figures
from broker.bench.http import BenchError
from broker.bench.process import memory
from broker.bench.scenarios import Scenario, Size, bulk
from broker.bench.stage import Stage

_TASKS = 1_000_000
_PORTIONS = 20


async def _round(stage: Stage, size: Size) -> Figures:
    if not stage.is_own:
        raise BenchError("`endurance` measures the process of the service. Omit --url.")
    portion = max(100, size.of(_TASKS) // _PORTIONS // 100 * 100)
    async with stage.service() as service:
        mebibytes = []
        for _ in range(_PORTIONS):
            await bulk.run_life_cycles(service, portion)
            mebibytes.append(memory(service.pid) / 2**20)
    return {
        "MiB after a tenth": mebibytes[_PORTIONS // 10 - 1],
        "MiB at the end": mebibytes[-1],
        "MiB at most": max(mebibytes),
    } | service.meter.figures()


SCENARIO = Scenario(
    name="endurance",
    says=f"the memory of the service during {_TASKS:,} life cycles",
    round=_round,
    ratios={"of that after a tenth": ("MiB at the end", "MiB after a tenth")},
    wanted={"of that after a tenth": "≤ 1.05"},
)
