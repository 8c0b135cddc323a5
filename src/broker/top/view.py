"""Draw a snapshot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from msgspec.structs import asdict
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.schemas.limits import ASSIGNER_ABSENT_SECONDS
from broker.schemas.overview import ToolSummary, WorkSummary
from broker.schemas.stats import Stats
from broker.top.layout import Layout, fit, hidden_work, shown_work
from broker.top.reader import Snapshot
from broker.top.texts import count, line, safe, span

# The length of an id that the broker generates. Most ids that people choose are not longer.
_LONGEST_ID = 36
_BAR_WIDTH = 10
# Narrower screens have no progress bars.
_WIDTH_FOR_BARS = 100
_NUMBERS = ("LOAD", "DONE", "ELAPSED", "TASKS", "PRIORITY", "WAITED")
_STYLES = {
    "idle": "green",
    "busy": "cyan",
    "draining": "yellow",
    "offline": "red",
    "available": "yellow",
    "running": "cyan",
    "failed": "red",
    "succeeded": "green",
    "lost": "red",
    "timed_out": "red",
}
# Other counts of the last minute are shown only if they are not zero.
_ALWAYS_SHOWN = ("submitted", "succeeded")


@dataclass(frozen=True)
class View:
    """A snapshot that can be drawn.

    Args:
        url: The URL of the broker.
        snapshot: The snapshot; None before the first one was read.
        trouble: The reason why no newer snapshot could be read.
        hint: The keys that the user may press.
        on_screen: Whether the lines must fit on a screen.
    """

    url: str
    snapshot: Snapshot | None
    trouble: str | None = None
    hint: str = ""
    on_screen: bool = False

    def layout(self, height: int) -> Layout | None:
        """Return the parts that fit on a screen of this height in lines; None before the first snapshot."""
        if self.snapshot is None:
            return None
        return fit(self.snapshot, height - len(list(self._head())) if self.on_screen else None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._head()
        if self.snapshot is not None and (layout := self.layout(options.size.height)) is not None:
            yield _title_of_tools(self.snapshot, layout)
            if layout.tools:
                yield _tools(layout.tools, self.snapshot.stats.at, options.max_width)
            yield _title_of_waiting(self.snapshot, layout)
            if layout.kinds:
                yield _kinds(layout, options.max_width)
            if layout.waiting:
                yield _waiting(layout, self.snapshot.stats.at, options.max_width)

    def _head(self) -> Iterator[Text]:
        """Yield the lines above the tables."""
        title = line()
        title.append("broker top", "bold").append("  ").append_text(safe(self.url))
        if self.snapshot is not None:
            title.append(f"  {self.snapshot.stats.at.astimezone():%H:%M:%S}", "bold")
        if self.hint:
            title.append(f"  {self.hint}", "dim")
        yield title
        if self.trouble is not None:
            yield safe(self.trouble, "bold red")
        if self.snapshot is not None:
            yield from _numbers(self.snapshot.stats)


def _numbers(stats: Stats) -> Iterator[Text]:
    """Yield the counts, a line for each group of them."""
    yield _counts("Tasks", asdict(stats.tasks))
    states = asdict(stats.tools)
    room = states.pop("room")
    tools = _counts("Tools", states)
    tools.append(f"   free capacity: {room:,}")
    yield tools
    minute = asdict(stats.last_minute)
    shown = {name: number for name, number in minute.items() if number or name in _ALWAYS_SHOWN}
    yield _counts("Last minute", shown)
    yield _queue(stats)


def _counts(name: str, numbers: Mapping[str, int]) -> Text:
    text = _label(name)
    for state, number in numbers.items():
        style = _STYLES.get(state, "") if number else "dim"
        text.append(f"  {number:,} {state.replace('_', ' ')}", style)
    return text


def _queue(stats: Stats) -> Text:
    """Return the age of the oldest waiting task, and the time of the last request of an assigner."""
    text = _label("Queue")
    if stats.oldest_available_seconds is None:
        text.append("  empty; ", "green")
    else:
        text.append(f"  the oldest has waited for {span(stats.oldest_available_seconds)}; ")
    if stats.assigner_seen_at is None:
        return text.append("no assigner has ever asked for tasks", "bold red")
    silence = stats.at - stats.assigner_seen_at
    if silence.total_seconds() > ASSIGNER_ABSENT_SECONDS:
        return text.append(f"no assigner has asked for tasks for {_span(silence)}", "bold red")
    return text.append(f"an assigner asked for tasks {_span(silence)} ago", "green")


def _label(name: str) -> Text:
    return line().append(f"{name:11}", "bold")


def _title_of_tools(snapshot: Snapshot, layout: Layout) -> Text:
    states = asdict(snapshot.stats.tools)
    total = sum(states.values()) - states["room"]
    if not total:
        return line("No tool is registered.", "bold")
    page = f", page {snapshot.page + 1}" if snapshot.page else ""
    if len(layout.tools) == total:
        return line(count(total, "tool"), "bold")
    return line(f"{len(layout.tools):,} of {count(total, 'tool')}{page}", "bold")


def _tools(tools: Sequence[ToolSummary], now: datetime, width: int) -> Table:
    bar = ("",) if width >= _WIDTH_FOR_BARS else ()
    table = _table("TOOL", "STATE", "LOAD", "TASK", *bar, "DONE", "ELAPSED", "LAST MESSAGE", width=width)
    for tool in tools:
        name: list[RenderableType] = [
            safe(tool.id),
            Text(tool.state, _STYLES[tool.state]),
            f"{tool.load}/{tool.capacity}",
        ]
        for work in shown_work(tool):
            table.add_row(*name, *_work(work, now, with_bar=bool(bar)))
            name = ["", "", ""]
        if hidden_work(tool):
            table.add_row(*name, line(f"and {hidden_work(tool):,} more", "dim"))
        if not tool.work:
            seen = f"seen {_span(now - tool.seen_at)} ago" if tool.state == "offline" else ""
            table.add_row(*name, "", *bar, "", "", line(seen, "dim"))
    return table


def _work(work: WorkSummary, now: datetime, *, with_bar: bool) -> list[RenderableType]:
    """Return the cells of a work item."""
    message = safe(work.message or "")
    if work.state == "assigned":
        message = line("assigned, not started", "dim")
    if work.cancel_requested:
        message = line("stop requested  ", "yellow").append_text(message)
    bar: RenderableType = ""
    done = ""
    if work.progress is not None:
        bar, done = ProgressBar(total=1, completed=work.progress, width=_BAR_WIDTH), f"{work.progress:.0%}"
    bars = [bar] if with_bar else []
    since = work.started_at or work.assigned_at
    return [safe(work.task_id), *bars, done, _span(now - since), message]


def _title_of_waiting(snapshot: Snapshot, layout: Layout) -> Text:
    available, queue = snapshot.stats.tasks.available, snapshot.queue
    if not available:
        return line("No task is available.", "bold")
    title = f"{count(available, 'task')} available"
    if not layout.kinds:
        return line(title, "bold")
    title += f": the first {queue.counted:,} grouped by needs" if queue.more else ": grouped by needs"
    if layout.waiting:
        title += ", and the " + ("oldest" if len(layout.waiting) == 1 else f"{len(layout.waiting):,} oldest")
    return line(title, "bold")


def _kinds(layout: Layout, width: int) -> Table:
    table = _table("TASKS", "PRIORITY", "NEEDS", width=width)
    for kind in layout.kinds:
        table.add_row(f"{kind.tasks:,}", str(kind.priority), safe(kind.needs))
    return table


def _waiting(layout: Layout, now: datetime, width: int) -> Table:
    table = _table("TASK", "PRIORITY", "WAITED", "REMARK OF THE ASSIGNER", width=width)
    for task in layout.waiting:
        table.add_row(
            safe(task.id), str(task.priority), _span(now - task.created_at), safe(task.remark or "")
        )
    return table


def _table(*headings: str, width: int) -> Table:
    """Return a table with rows of one line each. The last column gets the remaining space."""
    table = Table(box=None, expand=True, pad_edge=False, header_style="reverse", padding=(0, 1, 0, 0))
    for heading in headings:
        is_id = heading in ("TOOL", "TASK")
        table.add_column(
            heading,
            no_wrap=True,
            justify="right" if heading in _NUMBERS else "left",
            max_width=max(8, min(_LONGEST_ID, width // 5)) if is_id else None,
            width=_BAR_WIDTH if not heading else None,
            ratio=1 if heading == headings[-1] else None,
        )
    return table


def _span(time: timedelta) -> str:
    return span(time.total_seconds())
