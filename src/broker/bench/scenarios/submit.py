"""`submit`: one task per request."""

from broker.bench import pgbench
from broker.bench.figures import Figures
from broker.bench.http import HttpConnection
from broker.bench.load import closed_loop
from broker.bench.meter import Meter
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.bench.work import encode_task

_CLIENTS = 64
_PGBENCH_CLIENTS = 16


async def _round(stage: Stage, size: Size) -> Figures:
    async with stage.service() as service:
        figures = await _post(service.url, "/v1/tasks", size, service.meter)
    figures = {"tasks/s": figures.pop("/s")} | figures | service.meter.figures()
    async with stage.echo() as url:
        figures["bare Litestar echo /s"] = (await _post(url, "/echo", size))["/s"]
    if stage.is_own:
        async with stage.service(BROKER_GROUP_COMMIT="false") as service:
            figures["without group commit /s"] = (await _post(service.url, "/v1/tasks", size))["/s"]
        figures["pgbench, same SQL /s"] = await pgbench.run(
            stage, pgbench.submitting(1), clients=_PGBENCH_CLIENTS, seconds=size.seconds
        )
    return figures


async def _post(url: str, path: str, size: Size, meter: Meter | None = None) -> Figures:
    body = encode_task(1)

    async def once(connection: HttpConnection, _: int) -> None:
        await connection.call("POST", path, body, into=None)

    return await closed_loop(url, _CLIENTS, size.seconds, once, meter)


SCENARIO = Scenario(
    name="submit",
    says=f"{_CLIENTS} clients submit one task per request",
    round=_round,
    ratios={
        "of a bare echo": ("tasks/s", "bare Litestar echo /s"),
        "× without group commit": ("tasks/s", "without group commit /s"),
        "of pgbench": ("tasks/s", "pgbench, same SQL /s"),
    },
    wanted={"of a bare echo": "≥ 1.3", "× without group commit": "≥ 4"},
)
