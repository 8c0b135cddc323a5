"""The workloads that the broker and its peers all run."""

from typing import Any

from msgspec import Struct

from broker.bench.figures import Figures
from broker.bench.meter import LOAD, POSTGRES, SERVICE, WAL, Meter
from broker.bench.scenarios import Size
from broker.bench.work import task

CPU = "CPU µs/task"


class Workload(Struct, frozen=True, kw_only=True):
    """A workload.

    Args:
        name: The name in the output.
        says: The description in one line.
        mode: How a peer's program submits the tasks: `single`, `batch` or `paced`.
        tasks: The usual number of tasks.
        figures: The names of the figures to compare.
        wanted: The project's target for the ratio of the first figure, broker : peer.
    """

    name: str
    says: str
    mode: str
    tasks: int
    figures: tuple[str, ...]
    wanted: str

    def number(self, size: Size) -> int:
        """Return the number of tasks, for batches a multiple of their size."""
        number = size.of(self.tasks)
        return max(BATCH, number // BATCH * BATCH) if self.mode == "batch" else number

    def order(self, size: Size) -> dict[str, Any]:
        """Return the facts of the workload for the programs of a peer."""
        return {
            "mode": self.mode,
            "tasks": self.number(size),
            "clients": CLIENTS,
            "batch": BATCH,
            "interval_seconds": INTERVAL_SECONDS,
            "payload": task(0)["payload"],
        }


# The number of submitters, and of tasks that run at a time.
CLIENTS = 16
# The number of tasks in a request or call.
BATCH = 1_000
INTERVAL_SECONDS = 0.05

SINGLE = Workload(
    name="one by one",
    says=f"{CLIENTS} clients submit tasks one by one, and an empty handler completes them",
    mode="single",
    tasks=5_000,
    figures=("tasks/s", CPU, WAL),
    wanted="≥ 1.5",
)
BATCHES = Workload(
    name="in batches",
    says=f"the same with one client that submits {BATCH:,} tasks at a time",
    mode="batch",
    tasks=20_000,
    figures=("tasks/s", CPU, WAL),
    wanted="≥ 1",
)
PACED = Workload(
    name="one each 50 ms",
    says="the time from the start of a submission to the start of the handler, for one task each 50 ms",
    mode="paced",
    tasks=200,
    figures=("p50 ms", "p99 ms"),
    wanted="≤ 1",
)
WORKLOADS = (SINGLE, BATCHES, PACED)


def costs(meter: Meter) -> Figures:
    """Return the CPU time of all processes together, and the bytes of WAL, per task."""
    figures = meter.figures()
    return {CPU: figures[SERVICE] + figures[POSTGRES] + figures[LOAD], WAL: figures[WAL]}
