"""What the demo shows: how far every task is, and at the end what was found."""

from collections.abc import Iterable

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.demo.laboratory import Step
from broker.schemas.archive import ArchiveRecord
from broker.schemas.values import plain

_STYLES = {"submitted": "dim", "assigned": "yellow", "running": "cyan", "succeeded": "green"}


def progress(steps: Iterable[Step]) -> Table:
    """Every task: what is to be done, who does it, how far it is."""
    table = Table(box=None, padding=(0, 1), expand=True)
    for heading in ("image", "analysis", "tool", "state", "progress"):
        table.add_column(heading, no_wrap=True)
    # What does not fit is cut off here, and nowhere else.
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


def line(step: Step) -> str:
    """One step, where there is no terminal to draw on."""
    percent = "" if step.progress is None else f"{step.progress:4.0%}"
    what = f"{step.picture.file} {step.picture.needs['analysis']}"
    return f"{what:40} {step.tool or '':13} {step.state:10} {percent:5} {step.message or ''}".rstrip()


def results(records: Iterable[ArchiveRecord]) -> Table:
    """What was found, as the archive has it."""
    table = Table(title="What the archive says", title_justify="left")
    for heading in ("image", "tool", "found", "waited", "ran"):
        table.add_column(heading, justify="right" if heading in ("waited", "ran") else "left")
    for record in records:
        began = record.started_at or record.ended_at
        found = plain(record.result)["summary"] if record.outcome == "succeeded" else record.error
        table.add_row(
            plain(record.task.payload)["file"].rpartition("/")[2],
            record.tool_id,
            found,
            f"{(began - record.task.created_at).total_seconds():.2f} s",
            f"{(record.ended_at - began).total_seconds():.2f} s",
        )
    return table
