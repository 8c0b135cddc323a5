"""Ten minutes of random faults under load: `make soak`.

Two brokers, four tools, an assigner and a group of submitters work on a primary and a standby. Faults happen
in random order, one or two at a time. At the end, the soak audits the tasks and checks for growth.
"""

import asyncio
import logging
import random
import shutil
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.conftest import temporary_folder
from tests.crash.faults import DATABASE_FAULTS, PROCESS_FAULTS, Fault, Scene, name_of
from tests.crash.laboratory import running_laboratory
from tests.crash.pair import running_pair
from tests.crash.submitters import HANGS, KINDS, REPORTS
from tests.crash.watch import Finding, Watch

# The number of tasks that end without a fault between two faults.
CALM_TASKS = 200
# The rest after a round of all faults. A database that crashes twice a minute never vacuums.
REST_SECONDS = 25


class Soak:
    """A soak test: it causes faults, and measures the time until tasks end again.

    Args:
        minutes: Its duration.
        progress: The progress display.
    """

    def __init__(self, minutes: float, progress: Progress) -> None:
        self._seconds = minutes * 60
        self._progress = progress
        #: For each fault, the recovery times in seconds.
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.findings: list[Finding] = []
        self.tasks = 0

    async def run(self, logs: Path, data: Path) -> None:
        """Run the soak test.

        Args:
            logs: The folder for the logs of the processes.
            data: The folder for the databases.

        Raises:
            AssertionError: The audit has failed.
            TimeoutError: The service has not recovered in time.
        """
        async with (
            running_pair(data) as pair,
            running_laboratory(
                pair.url, logs, brokers=2, tools=4, kinds=(*KINDS, HANGS, REPORTS), gateways=True
            ) as laboratory,
        ):
            lasting, mortal = laboratory.brokers
            watch = Watch(laboratory, lasting)
            async with laboratory.submitters.at_work():
                await self._cause_faults(Scene(laboratory, pair, mortal), watch)
            await laboratory.audit()
            self.tasks = len(laboratory.submitters.outcomes)
            self.findings = watch.findings()

    async def _cause_faults(self, scene: Scene, watch: Watch) -> None:
        submitters = scene.laboratory.submitters
        bar = self._progress.add_task("", total=self._seconds)
        began = time.monotonic()
        for faults in _random_faults():
            self._progress.update(
                bar,
                completed=time.monotonic() - began,
                description=f"{len(submitters.outcomes):,} tasks; {_in_words(faults)}",
            )
            if time.monotonic() - began >= self._seconds:
                return
            caused = time.monotonic()
            await asyncio.gather(*(fault(scene) for fault in faults))
            await submitters.wait_for_outcomes()
            for fault in faults:
                self.recoveries[name_of(fault)].append(time.monotonic() - caused)
            await scene.pair.restore_standby()
            await (submitters.wait_for_outcomes(CALM_TASKS) if faults else asyncio.sleep(REST_SECONDS))
            await watch.take_sample()


def _random_faults() -> Iterator[tuple[Fault, ...]]:
    """Yield rounds of all faults in random order.

    Some faults of the database come together with a fault of a process. An empty tuple ends each round.
    """
    while True:
        processes, database = random.sample(PROCESS_FAULTS, len(PROCESS_FAULTS)), list(DATABASE_FAULTS)
        random.shuffle(database)
        rounds: list[tuple[Fault, ...]] = []
        for fault in database:
            together = bool(processes) and random.random() < 0.5
            rounds.append((fault, processes.pop()) if together else (fault,))
        rounds += [(fault,) for fault in processes]
        random.shuffle(rounds)
        yield from rounds
        yield ()


def _in_words(faults: tuple[Fault, ...]) -> str:
    return " and ".join(map(name_of, faults)) or "all is well"


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.1), help="The duration.")
@click.option("--seed", type=int, help="The seed of the order of faults, to repeat it.  [default: random]")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/soak"),
    show_default=True,
    help="The folder for the logs of the processes. It is emptied first.",
)
def main(*, minutes: float, seed: int | None, logs: Path) -> None:
    """Cause random faults under load, then audit all tasks."""
    seed = random.randrange(10**6) if seed is None else seed
    random.seed(seed)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"To repeat this order of faults, use --seed {seed}.")
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    logging.basicConfig(filename=logs / "submitters.log", filemode="w", level=logging.WARNING)
    columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress, temporary_folder() as data:
        soak = Soak(minutes, progress)
        try:
            asyncio.run(soak.run(logs.resolve(), data))
        except (AssertionError, TimeoutError):
            console.print_exception()
            console.print(f"[red]The soak test failed.[/red] The logs of the processes are in {logs}.")
            sys.exit(1)
    console.print(_faults(soak), _audit(soak))
    sys.exit(not all(finding.good for finding in soak.findings))


def _faults(soak: Soak) -> Table:
    table = Table("fault", title="Seconds until 20 more tasks had ended", title_justify="left")
    for heading in ("count", "median", "maximum"):
        table.add_column(heading, justify="right")
    for name, seconds in sorted(soak.recoveries.items()):
        table.add_row(name, str(len(seconds)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    return table


def _audit(soak: Soak) -> Table:
    table = Table("audit", "measured", "expected", "", title="After the soak test", title_justify="left")
    table.add_row("acknowledged tasks that ended exactly once", f"{soak.tasks:,}", "all", "✓")
    for name, measured, expected, good in soak.findings:
        table.add_row(name, measured, expected, "✓" if good else "[red]✗[/red]")
    return table


if __name__ == "__main__":
    main()
