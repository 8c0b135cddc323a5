"""`broker bench`: measure the broker on this machine."""

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
from broker.bench.machine import machine
from broker.bench.peers.contest import compare
from broker.bench.peers.peer import PEERS
from broker.bench.peers.table import comparison_table
from broker.bench.peers.workloads import WORKLOADS
from broker.bench.run import LONG, SCENARIOS, run
from broker.bench.scenarios import Size
from broker.bench.stage import Stage
from broker.cli.stop_signals import run_async_in, sigterm_as_ctrl_c
from broker.postgres.cluster import EmbeddedPostgres
from broker.postgres.errors import EmbeddedError

_DESCRIPTIONS = "\n".join(f"  {name:<10} {scenario.says}" for name, scenario in SCENARIOS.items())


_EPILOG = f"""
\b
Scenarios ({", ".join(LONG)} run only if you name them):
{_DESCRIPTIONS}

\b
Examples:
  broker bench
  broker bench submit drain --rounds 5 --json figures.json
  broker bench --peers
"""
_RATIOS = """\
Medians. A ratio is that of the broker to the peer. With tasks/s, above 1 means that the broker is faster.
With milliseconds, CPU time and WAL, below 1 means that the broker needs less."""


@click.command(epilog=_EPILOG)
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)), metavar="[SCENARIO]...")
@click.option(
    "--rounds",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100),
    help="How often to measure each scenario.",
)
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0.2, 600),
    help="The duration of a measurement in seconds, in scenarios with a fixed duration.",
)
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.001, 100),
    help="The number of tasks and tools, as a share of the usual number: 0.1 is a tenth.",
)
@click.option(
    "--url",
    help="Measure the service at this URL. The command then starts no service, and does not measure the"
    " limits of the machine.  [default: start a service]",
)
@click.option(
    "--peers",
    is_flag=True,
    help="Instead of the scenarios, compare the broker with PgQueuer and graphile-worker. Takes about four"
    " minutes.",
)
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the figures of every round to this file, as JSON.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the databases.  [default: a temporary folder]",
)
def bench(
    scenarios: Sequence[str],
    *,
    rounds: int,
    seconds: float,
    share: float,
    url: str | None,
    peers: bool,
    file: Path | None,
    folder: Path | None,
) -> None:
    """Measure the broker on this machine.

    Each round starts a service on an empty database, with the embedded PostgreSQL and the settings of `broker
    serve`. Clients then send requests to it. Each figure is shown next to a limit of this machine from the
    same round. The limits are a minimal Litestar application that returns the same body, pgbench with the
    same SQL, and the same service without group commit. Compare the ratios, because absolute figures depend
    on the machine. Run nothing else at the same time.

    A second table shows the cost of a task: the CPU time of the service, of PostgreSQL and of the load, the
    bytes in the write-ahead log (WAL), and the dead tuples. CPU time is the most stable figure.

    With `--peers`, the broker and two task queues on PostgreSQL run the same workloads in turn: on the same
    server, with the same durability, and with the settings that the peers recommend for throughput. The first
    run installs the peers into `~/.cache/broker/peers`, with pip and npm. If that fails, it skips the peer.
    The result is a table in Markdown.
    """
    if peers and (scenarios or url):
        raise click.UsageError("--peers has its own workloads and services. Omit SCENARIO and --url.")
    _allow_many_connections()
    names: Sequence[str] = scenarios or [name for name in SCENARIOS if name not in LONG]
    if peers:
        names = [workload.name for workload in WORKLOADS]
    console = Console(width=None if sys.stdout.isatty() else 120)
    size = Size(seconds=seconds, share=share)
    try:
        with sigterm_as_ctrl_c(), _stage(url, folder) as stage:
            facts = machine(stage.postgres_version)
            if peers:
                facts |= {peer.name: f"{peer.name} {peer.version}" for peer in PEERS}
            measured = _measure(console, stage, names, rounds=rounds, size=size, peers=peers)
    except (BenchError, EmbeddedError, OSError, TimeoutError, psutil.Error) as error:
        raise click.ClickException(f"{error or 'The service did not respond in time.'}") from error
    title = ", ".join(facts.values())
    if peers:
        click.echo(f"{title}\n\n{comparison_table(measured, PEERS)}\n\n{_RATIOS}")
    else:
        _print_tables(console, measured, title)
    if file is not None:
        file.write_bytes(
            msgspec.json.format(msgspec.json.encode(display.document(measured, facts)), indent=2)
        )
        console.print(f"Wrote the figures of every round to {file}.")


def _print_tables(console: Console, measured: Sequence[Measured], title: str) -> None:
    console.print(display.figures_table(measured, title))
    if (costs := display.costs_table(measured)) is not None:
        console.print(costs)


def _measure(
    console: Console, stage: Stage, names: Sequence[str], *, rounds: int, size: Size, peers: bool
) -> list[Measured]:
    description = TextColumn(f"{{task.description:<{max(map(len, names))}}}")
    columns = (description, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=rounds, start=False) for name in names}

        def show_progress(name: str, done: int) -> None:
            progress.start_task(bars[name])
            progress.update(bars[name], completed=done)

        def say(text: str) -> None:
            console.print(text, highlight=False, markup=False)

        async def measure() -> list[Measured]:
            if peers:
                return await compare(
                    stage, PEERS, rounds=rounds, size=size, say=say, show_progress=show_progress
                )
            return await run(stage, names, rounds=rounds, size=size, show_progress=show_progress)

        return run_async_in(uvloop.new_event_loop, measure)


@contextlib.contextmanager
def _stage(url: str | None, folder: Path | None) -> Iterator[Stage]:
    if url is not None:
        yield Stage(None, url.rstrip("/"))
        return
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-bench-")))
            # Under root, PostgreSQL runs as another account, which must be able to enter the folder.
            folder.chmod(0o755)
        yield Stage(stack.enter_context(EmbeddedPostgres(folder / "bench")))


def _allow_many_connections() -> None:
    """Raise the limit of open files, because each waiting tool needs a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
