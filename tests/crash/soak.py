"""Ten minutes of everything that may happen, at random, under load: `make soak`.

Two brokers, four tools, an assigner and a crowd of customers on a primary and a standby. One fault comes
after the other, or two at once, in an order of chance; at the end the audit, and what has grown.
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
from tests.crash.customers import HANGS, KINDS, REPORTS
from tests.crash.faults import OF_PROCESSES, OF_THE_DATABASE, Fault, Scene, name_of
from tests.crash.laboratory import a_laboratory
from tests.crash.pair import a_pair
from tests.crash.watch import Finding, Watch

# Between two faults, with all well.
CALM_TASKS = 200
# After each of them had its turn: a database that dies twice a minute never comes to vacuum.
REST_SECONDS = 25


class Soak:
    """The faults, and how long it took until tasks ended again.

    Args:
        minutes: For how long.
        progress: Where it is shown.
    """

    def __init__(self, minutes: float, progress: Progress) -> None:
        self._seconds = minutes * 60
        self._progress = progress
        #: For each fault, after how many seconds it was overcome.
        self.overcome: dict[str, list[float]] = defaultdict(list)
        self.findings: list[Finding] = []
        self.tasks = 0

    async def run(self, logs: Path, data: Path) -> None:
        """Run it.

        Args:
            logs: The folder for what the processes say.
            data: The folder for the databases.

        Raises:
            AssertionError: The audit has found something.
            TimeoutError: The service has not come back.
        """
        async with (
            a_pair(data) as pair,
            a_laboratory(
                pair.url, logs, brokers=2, tools=4, kinds=(*KINDS, HANGS, REPORTS), gateways=True
            ) as laboratory,
        ):
            lasting, mortal = laboratory.brokers
            watch = Watch(laboratory, lasting)
            async with laboratory.customers.at_work():
                await self._shoot(Scene(laboratory, pair, mortal), watch)
            await laboratory.audit()
            self.tasks = len(laboratory.customers.answered)
            self.findings = watch.findings()

    async def _shoot(self, scene: Scene, watch: Watch) -> None:
        customers = scene.laboratory.customers
        bar = self._progress.add_task("", total=self._seconds)
        began = time.monotonic()
        for faults in _any_order():
            self._progress.update(
                bar,
                completed=time.monotonic() - began,
                description=f"{len(customers.answered):,} tasks; {_in_words(faults)}",
            )
            if time.monotonic() - began >= self._seconds:
                return
            struck = time.monotonic()
            await asyncio.gather(*(fault(scene) for fault in faults))
            await customers.more()
            for fault in faults:
                self.overcome[name_of(fault)].append(time.monotonic() - struck)
            await scene.pair.mend()
            await (customers.more(CALM_TASKS) if faults else asyncio.sleep(REST_SECONDS))
            await watch.look()


def _any_order() -> Iterator[tuple[Fault, ...]]:
    """Each as often as the others; and two at once, where one is of the processes, one of the database.

    Then none, for once.
    """
    while True:
        processes, database = random.sample(OF_PROCESSES, len(OF_PROCESSES)), list(OF_THE_DATABASE)
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
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.1), help="For how long.")
@click.option("--seed", type=int, help="For the same order of faults once more.  [default: another one]")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/soak"),
    show_default=True,
    help="The folder for what the processes say; emptied first.",
)
def main(*, minutes: float, seed: int | None, logs: Path) -> None:
    """Kill and cut everything at random, under load, and audit what is left."""
    seed = random.randrange(10**6) if seed is None else seed
    random.seed(seed)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"The order of faults is that of --seed {seed}.")
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    logging.basicConfig(filename=logs / "customers.log", filemode="w", level=logging.WARNING)
    columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress, temporary_folder() as data:
        soak = Soak(minutes, progress)
        try:
            asyncio.run(soak.run(logs.resolve(), data))
        except (AssertionError, TimeoutError):
            console.print_exception()
            console.print(f"[red]It did not hold.[/red] What the processes said is in {logs}.")
            sys.exit(1)
    console.print(_faults(soak), _audit(soak))
    sys.exit(not all(finding.good for finding in soak.findings))


def _faults(soak: Soak) -> Table:
    table = Table("fault", title="Until 20 more tasks had ended, in seconds", title_justify="left")
    for heading in ("times", "median", "greatest"):
        table.add_column(heading, justify="right")
    for name, seconds in sorted(soak.overcome.items()):
        table.add_row(name, str(len(seconds)), f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}")
    return table


def _audit(soak: Soak) -> Table:
    table = Table("audit", "found", "wanted", "", title="Afterwards", title_justify="left")
    table.add_row("tasks acknowledged, each ended exactly once", f"{soak.tasks:,}", "all", "✓")
    for what, found, wanted, good in soak.findings:
        table.add_row(what, found, wanted, "✓" if good else "[red]✗[/red]")
    return table


if __name__ == "__main__":
    main()
