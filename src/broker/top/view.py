"""How a snapshot looks."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from msgspec.structs import asdict
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.schemas.stats import Stats
from broker.top.layout import Layout, fit, unshown
from broker.top.reading import Doing, Snapshot, ToolAtWork
from broker.top.texts import count, line, safe, span

# An assigner that has been silent for longer is taken to be away, as `explain` has it.
_SILENCE = timedelta(minutes=1)
# The longest id that the broker makes, and as much as most of those that people choose.
_LONGEST_ID = 36
# Where there is room for it: how wide a progress bar is.
_BAR = 10
_WIDE = 100
_NUMBERS = ("LOAD", "DONE", "FOR", "TASKS", "PRIORITY", "HAS WAITED")
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
# Of the last minute the rest is told where it is not zero.
_ALWAYS_TOLD = ("submitted", "succeeded")


class View:
    """A snapshot that can be drawn.

    Args:
        url: Where the broker is.
        snapshot: What was read of it; None: nothing so far.
        trouble: What keeps us from reading on.
        hint: What may be pressed.
        on_screen: Whether there is a screen that it has to fit; else it takes what it needs.
    """

    def __init__(
        self,
        url: str,
        snapshot: Snapshot | None,
        *,
        trouble: str | None = None,
        hint: str = "",
        on_screen: bool = False,
    ) -> None:
        self._url = url
        self._snapshot = snapshot
        self._trouble = trouble
        self._hint = hint
        self._on_screen = on_screen

    def layout(self, height: int) -> Layout | None:
        """What of it has room on a screen of so many lines; None: nothing was read so far."""
        if self._snapshot is None:
            return None
        return fit(self._snapshot, height - len(list(self._head())) if self._on_screen else None)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Its lines."""
        yield from self._head()
        if self._snapshot is not None and (layout := self.layout(options.size.height)) is not None:
            yield _title_of_tools(self._snapshot, layout)
            if layout.tools:
                yield _tools(layout.tools, self._snapshot.stats.at, options.max_width)
            yield _title_of_waiting(self._snapshot, layout)
            if layout.kinds:
                yield _kinds(layout, options.max_width)
                yield _waiting(layout, self._snapshot.stats.at, options.max_width)

    def _head(self) -> Iterator[Text]:
        """The lines above the tables."""
        title = line()
        title.append("broker top", "bold").append("  ").append_text(safe(self._url))
        if self._snapshot is not None:
            title.append(f"  {self._snapshot.stats.at.astimezone():%H:%M:%S}", "bold")
        if self._hint:
            title.append(f"  {self._hint}", "dim")
        yield title
        if self._trouble is not None:
            yield safe(self._trouble, "bold red")
        if self._snapshot is not None:
            yield from _numbers(self._snapshot.stats)


def _numbers(stats: Stats) -> Iterator[Text]:
    """The counts, a line for each group of them."""
    yield _counts("Tasks", asdict(stats.tasks))
    states = asdict(stats.tools)
    room = states.pop("room")
    tools = _counts("Tools", states)
    tools.append(f"   room for {room:,} more")
    yield tools
    minute = asdict(stats.last_minute)
    told = {name: number for name, number in minute.items() if number or name in _ALWAYS_TOLD}
    yield _counts("Last minute", told)
    yield _queue(stats)


def _counts(name: str, numbers: Mapping[str, int]) -> Text:
    counted = _label(name)
    for state, number in numbers.items():
        style = _STYLES.get(state, "") if number else "dim"
        counted.append(f"  {number:,} {state.replace('_', ' ')}", style)
    return counted


def _queue(stats: Stats) -> Text:
    """How long tasks wait, and whether somebody looks at them."""
    told = _label("Queue")
    if stats.oldest_available_seconds is None:
        told.append("  empty; ", "green")
    else:
        told.append(f"  the oldest has waited for {span(stats.oldest_available_seconds)}; ")
    if stats.assigner_seen_at is None:
        return told.append("no assigner has ever asked", "bold red")
    silence = stats.at - stats.assigner_seen_at
    if silence > _SILENCE:
        return told.append(f"no assigner has asked for {_span(silence)}", "bold red")
    return told.append(f"an assigner asked {_span(silence)} ago", "green")


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


def _tools(tools: Sequence[ToolAtWork], now: datetime, width: int) -> Table:
    bar = ("",) if width >= _WIDE else ()
    table = _table("TOOL", "STATE", "LOAD", "TASK", *bar, "DONE", "FOR", "LAST MESSAGE", width=width)
    for tool in tools:
        name: list[RenderableType] = [
            safe(tool.id),
            Text(tool.state, _STYLES[tool.state]),
            f"{tool.load}/{tool.capacity}",
        ]
        for work in tool.work:
            table.add_row(*name, *_work(work, now, with_bar=bool(bar)))
            name = ["", "", ""]
        if unshown(tool):
            table.add_row(*name, line(f"and {unshown(tool):,} more", "dim"))
        if not tool.work:
            seen = f"seen {_span(now - tool.seen_at)} ago" if tool.state == "offline" else ""
            table.add_row(*name, "", *bar, "", "", line(seen, "dim"))
    return table


def _work(work: Doing, now: datetime, *, with_bar: bool) -> list[RenderableType]:
    """The cells of a work."""
    message = safe(work.message or "")
    if not work.is_running:
        message = line("is assigned, and not started", "dim")
    if work.cancel_requested:
        message = line("asked to stop  ", "yellow").append_text(message)
    bar: RenderableType = ""
    done = ""
    if work.progress is not None:
        bar, done = ProgressBar(total=1, completed=work.progress, width=_BAR), f"{work.progress:.0%}"
    bars = [bar] if with_bar else []
    return [safe(work.task_id), *bars, done, _span(now - work.since), message]


def _title_of_waiting(snapshot: Snapshot, layout: Layout) -> Text:
    available, read = snapshot.stats.tasks.available, len(snapshot.waiting)
    if not available:
        return line("No task is available.", "bold")
    said = f"{count(available, 'task')} available"
    if not layout.kinds:
        return line(said, "bold")
    if read < available:
        said += f"; below are the {read:,} that were submitted first"
    return line(f"{said}, by what they need; and the first {len(layout.waiting):,} of them", "bold")


def _kinds(layout: Layout, width: int) -> Table:
    table = _table("TASKS", "PRIORITY", "NEEDS", width=width)
    for kind in layout.kinds:
        table.add_row(f"{kind.tasks:,}", str(kind.priority), safe(kind.needs))
    return table


def _waiting(layout: Layout, now: datetime, width: int) -> Table:
    table = _table("TASK", "PRIORITY", "HAS WAITED", "THE ASSIGNER SAYS", width=width)
    for task in layout.waiting:
        table.add_row(safe(task.id), str(task.priority), _span(now - task.since), safe(task.remark or ""))
    return table


def _table(*headings: str, width: int) -> Table:
    """A table of rows that are one line each; the last column takes what room there is."""
    table = Table(box=None, expand=True, pad_edge=False, header_style="reverse", padding=(0, 1, 0, 0))
    for heading in headings:
        is_id = heading in ("TOOL", "TASK")
        table.add_column(
            heading,
            no_wrap=True,
            justify="right" if heading in _NUMBERS else "left",
            max_width=max(8, min(_LONGEST_ID, width // 5)) if is_id else None,
            width=_BAR if not heading else None,
            ratio=1 if heading == headings[-1] else None,
        )
    return table


def _span(time: timedelta) -> str:
    return span(time.total_seconds())
