"""`broker demo`: run a demo laboratory on real images."""

import signal
import sys
import time
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from broker.cli.database import default_data_dir
from broker.cli.output import this_program
from broker.cli.stop_signals import run_async, sigterm_as_ctrl_c
from broker.schemas.archive import ArchiveRecord

_EXAMPLES = """
\b
Examples:
  broker demo
  broker demo --keep --port 8000
"""


@click.command(epilog=_EXAMPLES)
@click.option("--keep", is_flag=True, help="Keep the service running afterwards, until Ctrl-C.")
@click.option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="The port of the service.  [default: a free port]",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for the data of the demo. Do not use the folder of another service.  [default:"
    " broker-demo next to the default BROKER_DATA_DIR]",
)
def demo(keep: bool, port: int, data_dir: Path | None) -> None:
    """Run a demo laboratory on real images.

    The demo starts a service with its own database, an assigner and five tools. Instruments submit pictures
    of cells, eyes, the sky, pages and coins. The assigner pairs them with the tools that can analyze them.
    Each tool is a separate process, which waits in a long poll until it has work.
    """
    if find_spec("skimage") is None:
        raise click.ClickException(
            "The demo needs scikit-image and its images. Run `pip install '.[demo]'` in the broker's folder."
        )
    # Without a terminal, do not wrap lines.
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        folder = data_dir or default_data_dir("--data-dir").with_name("broker-demo")
        with sigterm_as_ctrl_c():
            succeeded = _run(console, folder, keep=keep, port=port)
    except (TimeoutError, RuntimeError) as error:
        raise click.ClickException(
            f"The service of the demo did not start. Its messages are above. {error}"
        ) from error
    sys.exit(0 if succeeded else 1)


def _run(console: Console, data_dir: Path, *, keep: bool, port: int) -> bool:
    from broker.demo import display, laboratory  # noqa: PLC0415 - needs the extra

    started_at = time.monotonic()
    console.print("Starting the service, its database and five tools …")
    with laboratory.service(data_dir, port) as url:
        run_async(laboratory.until_ready, url)
        console.print(f"Dashboard: {url}\nAPI: {url}/docs\n", soft_wrap=True)
        with laboratory.tools(url):
            records = run_async(_watch, console, url)
        console.print(display.results(records))
        succeeded = sum(record.outcome == "succeeded" for record in records)
        console.print(
            f"{succeeded} of {len(records)} tasks succeeded, in {time.monotonic() - started_at:.0f} s.\n"
        )
        if keep:
            console.print(f"The service keeps running at {url}. Stop it with Ctrl-C.", soft_wrap=True)
            with suppress(KeyboardInterrupt):
                signal.pause()
    console.print(
        "The archive keeps all records. To read them, run:\n"
        f"  BROKER_DATA_DIR={data_dir} {this_program()} serve\n"
        "Then open http://127.0.0.1:8000/#/history",
        soft_wrap=True,
    )
    return succeeded == len(records)


async def _watch(console: Console, url: str) -> list[ArchiveRecord]:
    from broker.demo import display, laboratory  # noqa: PLC0415 - needs the extra

    steps: dict[int, laboratory.DemoStep] = {}
    with Live(console=console, refresh_per_second=12) if console.is_terminal else nullcontext() as live:

        def show_step(step: laboratory.DemoStep) -> None:
            before = steps.get(id(step.picture))
            steps[id(step.picture)] = step
            if live is not None:
                live.update(display.progress(steps.values()))
            elif before is None or display.line(before) != display.line(step):
                console.print(display.line(step), soft_wrap=True)

        return await laboratory.work(url, show_step)
