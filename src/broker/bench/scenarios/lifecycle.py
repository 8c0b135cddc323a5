"""`lifecycle`: all requests of the life cycle of a task, one by one."""

from broker.bench import pgbench
from broker.bench.clients import registered
from broker.bench.figures import Figures
from broker.bench.http import BenchError, HttpConnection
from broker.bench.load import closed_loop
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import BenchService, Stage
from broker.bench.work import HALF_WAY, BenchCandidates, BenchItem, BenchItems, encode_task
from broker.schemas.candidates import Pair

_CLIENTS = 64
_PGBENCH_CLIENTS = 16
_SUCCEEDED = b'{"outcome": "succeeded", "result": {"ok": true}}'


async def _round(stage: Stage, size: Size) -> Figures:
    async with stage.service() as service:
        figures = await _live(service, size.seconds)
    figures = {"life cycles/s": figures.pop("/s")} | figures | service.meter.figures()
    if stage.is_own:
        async with stage.service(BROKER_GROUP_COMMIT="false") as service:
            figures["session per request /s"] = (await _live(service, size.seconds))["/s"]
        figures["pgbench, same SQL /s"] = await pgbench.run(
            stage, pgbench.life_cycle(1), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
    return figures


async def _live(service: BenchService, seconds: float) -> Figures:
    async with registered(service.url, _CLIENTS) as tools:

        async def once(connection: HttpConnection, number: int) -> None:
            await _life(connection, tools[number])

        return await closed_loop(service.url, _CLIENTS, seconds, once, service.meter)


async def _life(connection: HttpConnection, tool: str) -> None:
    """Run the life cycle of a task, from its submission to its record."""
    call = connection.call
    task = await call("POST", "/v1/tasks", encode_task(1), BenchItem)
    await call("GET", "/v1/candidates?limit=1", into=BenchCandidates)
    await call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), BenchItem)
    [work] = (await call("GET", f"/v1/tools/{tool}/work?wait=10", into=BenchItems)).items
    await call("POST", f"/v1/work/{work.id}/start", into=BenchItem)
    await call("POST", f"/v1/work/{work.id}/reports", HALF_WAY, into=None)
    await call("POST", f"/v1/tools/{tool}/heartbeat", into=None)
    await call("POST", f"/v1/work/{work.id}/complete", _SUCCEEDED, into=None)
    record = await call("GET", f"/v1/archive/{work.id}")
    if record["outcome"] != "succeeded" or len(record["reports"]) != 1:
        raise BenchError(f"the record does not match the work: {record}")


SCENARIO = Scenario(
    name="lifecycle",
    says=f"{_CLIENTS} clients send all requests of a task's life cycle one by one",
    round=_round,
    ratios={
        "× session per request": ("life cycles/s", "session per request /s"),
        "of pgbench": ("life cycles/s", "pgbench, same SQL /s"),
    },
    wanted={"× session per request": "≥ 3"},
)
