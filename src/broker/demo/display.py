"""Draw the progress of every task of the demo, and the results at the end."""

from collections.abc import Iterable

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.demo.laboratory import DemoStep
from broker.schemas.archive import ArchiveRecord
from broker.schemas.values import plain

_STYLES = {"submitted": "dim", "assigned": "yellow", "running": "cyan", "succeeded": "green"}


def progress(steps: Iterable[DemoStep]) -> Table:
    """Return a table of all tasks: the analysis, the tool and the progress of each."""
    table = Table(box=None, padding=(0, 1), expand=True)
    for heading in ("image", "analysis", "tool", "state", "progress"):
        table.add_column(heading, no_wrap=True)
    # Only this column is shortened to fit.
    table.add_column("last report", no_wrap=True, ratio=1)
    for step in steps:
        done = 1.0 if step.state == "succeeded" else step.progress or 0.0
        table.add_row(
            step.picture.file,
            step.picture.needs["analysis"],
            step.tool or "",
            Text(step.state, style=_STYLES.get(step.state, "red")),
            ProgressBar(total=1, completed=done, width=10),
            step.message or "",
        )
    return table


def line(step: DemoStep) -> str:
    """Return a step as a line, for output that is not a terminal."""
    percent = "" if step.progress is None else f"{step.progress:4.0%}"
    task = f"{step.picture.file} {step.picture.needs['analysis']}"
    return f"{task:40} {step.tool or '':13} {step.state:10} {percent:5} {step.message or ''}".rstrip()


def results(records: Iterable[ArchiveRecord]) -> Table:
    """Return a table of the results in the archive."""
    table = Table(title="Results in the archive", title_justify="left")
    for heading in ("image", "tool", "result", "waited", "ran"):
        table.add_column(heading, justify="right" if heading in ("waited", "ran") else "left")
    for record in records:
        started_at = record.started_at or record.ended_at
        result = plain(record.result)["summary"] if record.outcome == "succeeded" else record.error
        table.add_row(
            plain(record.task.payload)["file"].rpartition("/")[2],
            record.tool_id,
            result,
            f"{(started_at - record.task.created_at).total_seconds():.2f} s",
            f"{(record.ended_at - started_at).total_seconds():.2f} s",
        )
    return table
