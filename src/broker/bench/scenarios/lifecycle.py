"""`lifecycle`: every call of a task's life, one by one."""

from uuid import uuid4

from broker.bench import pgbench
from broker.bench.figures import Round
from broker.bench.http import BenchError, Connection
from broker.bench.load import closed_loop, connections
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import Candidates, Items, Named, Pair, encoded

_CLIENTS = 64
_PGBENCH_CLIENTS = 16
_HALF_WAY = b'{"progress": 0.5, "message": "half way"}'
_SUCCEEDED = b'{"outcome": "succeeded", "result": {"ok": true}}'


async def _round(stage: Stage, size: Size) -> Round:
    """Measure the service, and beside it each of its ceilings."""
    async with stage.service() as service:
        found = await _live(service.url, size.seconds)
    found = {"life cycles/s": found.pop("/s")} | found
    if stage.ours:
        async with stage.service(BROKER_GROUP_COMMIT="false") as service:
            found["session per request /s"] = (await _live(service.url, size.seconds))["/s"]
        found["pgbench, same SQL /s"] = await pgbench.run(
            stage, pgbench.life_cycle(1), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
    return found


async def _live(url: str, seconds: float) -> Round:
    run = uuid4()
    tools = [f"bench-{run}-{number}" for number in range(_CLIENTS)]
    async with connections(url, many=1) as [connection]:
        for tool in tools:
            await connection.call("POST", "/v1/tools", {"id": tool, "skills": {}})

    async def life(connection: Connection, number: int) -> None:
        await _life(connection, tools[number])

    found = await closed_loop(url, _CLIENTS, seconds, life)
    async with connections(url, many=1) as [connection]:
        for tool in tools:
            await connection.call("DELETE", f"/v1/tools/{tool}", form=None)
    return found


async def _life(connection: Connection, tool: str) -> None:
    """One task's life, from submitting it to reading its record."""
    call = connection.call
    task = await call("POST", "/v1/tasks", encoded(1), Named)
    await call("GET", "/v1/candidates?limit=1", form=Candidates)
    await call("POST", "/v1/work", Pair(task_id=task.id, tool_id=tool), Named)
    [work] = (await call("GET", f"/v1/tools/{tool}/work?wait=10", form=Items)).items
    await call("POST", f"/v1/work/{work.id}/start", form=Named)
    await call("POST", f"/v1/work/{work.id}/reports", _HALF_WAY, form=None)
    await call("POST", f"/v1/tools/{tool}/heartbeat", form=None)
    await call("POST", f"/v1/work/{work.id}/complete", _SUCCEEDED, form=None)
    record = await call("GET", f"/v1/archive/{work.id}")
    if record["outcome"] != "succeeded" or len(record["reports"]) != 1:
        raise BenchError(f"the record does not tell what happened: {record}")


SCENARIO = Scenario(
    name="lifecycle",
    says=f"{_CLIENTS} clients, every call of a task's life one by one",
    round=_round,
    ratios={
        "× session per request": ("life cycles/s", "session per request /s"),
        "of pgbench": ("life cycles/s", "pgbench, same SQL /s"),
    },
    wanted={"× session per request": "≥ 3"},
)
