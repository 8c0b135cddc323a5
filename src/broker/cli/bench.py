"""`broker bench`: measure what the broker does on this machine."""

import contextlib
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import msgspec
import psutil
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker.bench import display
from broker.bench.figures import Measured
from broker.bench.http import BenchError
from broker.bench.run import LONG, SCENARIOS, run
from broker.bench.scenarios import Size
from broker.bench.stage import Stage
from broker.cli.stop_signals import run_async_in, sigterm_as_ctrl_c
from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.errors import EmbeddedError

_DESCRIPTIONS = "\n".join(f"  {name:<10} {scenario.says}" for name, scenario in SCENARIOS.items())


@click.command(epilog=f"\b\nScenarios ({', '.join(LONG)} only where they are asked for):\n{_DESCRIPTIONS}")
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)), metavar="[SCENARIO]...")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Rounds of each.")
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.2, 600),
    help="Of what runs for a time.",
)
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.001, 100),
    help="Of the usual numbers of tasks and tools, take so much.",
)
@click.option("--url", help="Measure this service, and not one of its own; its ceilings are left out.")
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write everything here."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where databases go.  [default: temporary]",
)
def bench(
    scenarios: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    share: float,
    url: str | None,
    file: Path | None,
    folder: Path | None,
) -> None:
    """Measure what the broker does on this machine.

    Each round starts a service of its own on an empty database of an embedded PostgreSQL with durable
    settings, as `broker serve` does, and puts load on it from this process. Beside each figure stands what
    the machine allows, measured in the same round: a bare Litestar that echoes the same body, pgbench with
    the same SQL, the same service without group commit. Compare ratios: absolute figures move with the
    machine. Let nothing else run meanwhile.
    """
    _allow_many_connections()
    names = scenarios or [name for name in SCENARIOS if name not in LONG]
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with sigterm_as_ctrl_c(), _stage(url, folder) as stage:
            measured = _measure(console, stage, names, rounds=rounds, size=Size(seconds=seconds, share=share))
    except (BenchError, EmbeddedError, OSError, TimeoutError, psutil.Error) as error:
        raise click.ClickException(f"{error or 'The service did not answer in time.'}") from error
    console.print(display.figures_table(measured))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(display.document(measured)), indent=2))
        console.print(f"Every round is in {file}.")


def _measure(
    console: Console, stage: Stage, names: Sequence[str], *, rounds: int, size: Size
) -> list[Measured]:
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=rounds, start=False) for name in names}

        def show_progress(name: str, done: int) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=done)

        return run_async_in(
            uvloop.new_event_loop,
            run,
            stage,
            names,
            rounds=rounds,
            size=size,
            show_progress=show_progress,
        )


@contextlib.contextmanager
def _stage(url: str | None, folder: Path | None) -> Iterator[Stage]:
    if url is not None:
        yield Stage(None, url.rstrip("/"))
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-bench-")))
            # Started by root, PostgreSQL runs under another account, which needs to enter the folder.
            folder.chmod(0o755)
        yield Stage(stack.enter_context(EmbeddedPostgres(folder / "bench")))


def _allow_many_connections() -> None:
    """Raise the limit of open files: each waiting tool needs a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
