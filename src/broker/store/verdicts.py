"""Verdicts: from the facts about a task to why it has not run yet, as a word and in sentences."""

from datetime import datetime, timedelta
from typing import NamedTuple

from broker.schemas.limits import ASSIGNER_ABSENT_SECONDS
from broker.schemas.overview import MOST_CHARS
from broker.schemas.states import Verdict
from broker.schemas.tasks import Task
from broker.texts import shorten_in_the_middle

# The most tasks that are counted before a task. If there are more, the verdict says "more than".
MOST_BEFORE = 1_000


class ToolsByState(NamedTuple):
    """The number of tools in each state; each tool counts once.

    Tools that are not available are counted only if none is available.
    """

    available: int
    busy: int = 0
    draining: int = 0
    offline: int = 0


class WorkFacts(NamedTuple):
    """The facts about the work of a task.

    Until `deadline_at` it has to start, or to end. With `cancel_requeue`, a cancelled task goes back into the
    queue. The last report arrived at `reported_at`, and said `message`.
    """

    tool_id: str
    assigned_at: datetime
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    progress: float | None = None
    cancel_requested: bool = False
    cancel_requeue: bool = False
    reported_at: datetime | None = None
    message: str | None = None


class TaskFacts(NamedTuple):
    """The facts about a task at one moment, `now`.

    `before` is how many available tasks are offered before it, `assigner_seen_at` when an assigner last asked
    for candidates, and `due_at` when a scheduled task becomes available.
    """

    task: Task
    now: datetime
    tools: ToolsByState
    before: int = 0
    assigner_seen_at: datetime | None = None
    due_at: datetime | None = None
    work: WorkFacts | None = None


def verdict(facts: TaskFacts) -> tuple[Verdict, str]:
    """Return the first reason that holds, as a word for programs and in sentences for people."""
    task = facts.task
    match task.state:
        case "succeeded" | "cancelled":
            return "ended", _ended(task)
        case "failed":
            return "failed", _failed(task)
        case "running":
            return "running", _running(facts)
        case "assigned":
            return "assigned", _assigned(facts)
        case "scheduled":
            return _not_due(facts)
    return _waiting(facts)


def _ended(task: Task) -> str:
    at = f" at {_time(task.ended_at)}" if task.ended_at else ""
    if task.state == "cancelled":
        return f"The task was cancelled{at}. To have it done, submit it again with another id."
    return f"The task succeeded{at}, after {_count(task.attempt, 'attempt')}; its result is there."


def _failed(task: Task) -> str:
    at = f" at {_time(task.ended_at)}" if task.ended_at else ""
    return (
        f"The task failed{at}, after {_count(task.attempt, 'attempt')} ({task.max_attempts} at most), and is"
        f" held until it is retried or deleted. {_error(task)}"
    )


def _running(facts: TaskFacts) -> str:
    work, now = facts.work, facts.now
    if work is None or work.started_at is None:
        return "It runs."
    sentences = [
        f"Tool {work.tool_id} has been running it {_since(work.started_at, now)}.",
        f"This is attempt {facts.task.attempt + 1} ({facts.task.max_attempts} at most).",
    ]
    if work.progress is not None:
        sentences.append(f"It is {work.progress:.0%} done.")
    if work.reported_at is not None:
        ago = f"{_duration(now - work.reported_at)} ago"
        sentences.append(
            f"The tool said {ago}: {_shortened(work.message)}" if work.message else f"It reported {ago}."
        )
    if work.cancel_requested:
        sentences.append(f"The tool is asked to stop; the task then {_after_cancel(work)}.")
    if work.deadline_at is not None:
        sentences.append(f"It has time until {_when(work.deadline_at, now)}.")
    return _joined(sentences)


def _assigned(facts: TaskFacts) -> str:
    work = facts.work
    if work is None:
        return "Its tool has not started it yet."
    had = _since(work.assigned_at, facts.now)
    sentences = [f"Tool {work.tool_id} has had it {had}, and has not started it yet."]
    if work.deadline_at is not None:
        sentences.append(f"Unless it starts by {_when(work.deadline_at, facts.now)}, the task goes back.")
    if work.cancel_requested:
        sentences.append(f"The tool is asked to leave it; the task then {_after_cancel(work)}.")
    return _joined(sentences)


def _after_cancel(work: WorkFacts) -> str:
    return "goes back, for another attempt" if work.cancel_requeue else "is cancelled"


def _not_due(facts: TaskFacts) -> tuple[Verdict, str]:
    task, due_at = facts.task, facts.due_at
    # The broker offers a task a moment after it is due. Until then the reason is the same.
    if task.not_before is not None and (task.not_before > facts.now or task.not_before == due_at):
        return "not_before_its_time", f"It is not to run before {_when(task.not_before, facts.now)}."
    until = f" until {_when(due_at, facts.now)}" if due_at else ""
    return "backing_off", (
        f"Attempt {task.attempt} of {task.max_attempts} did not succeed: it waits{until} before the next one."
        f" {_error(task)}"
    )


def _waiting(facts: TaskFacts) -> tuple[Verdict, str]:
    tools = facts.tools
    if facts.assigner_seen_at is None:
        return "no_assigner", "No assigner has ever asked for tasks, so nothing is given to tools: start one."
    silence = facts.now - facts.assigner_seen_at
    if silence > timedelta(seconds=ASSIGNER_ABSENT_SECONDS):
        return "no_assigner", f"No assigner has asked for tasks for {_duration(silence)}: is it running?"
    if facts.task.remark is not None:
        return "refused_by_assigner", f"The assigner says: {_shortened(facts.task.remark)}"
    if not tools.available:
        return "no_tool_available", _no_tool(tools)
    return "waiting_for_assigner", (
        f"An assigner asks, and {_count(tools.available, 'tool')} could be given work; it has said nothing"
        f" about this task. Those that can do it may be busy. {_before(facts.before)}"
    )


def _no_tool(tools: ToolsByState) -> str:
    if not sum(tools):
        return "No tool is registered: start one."
    at = [f"{count:,} {name}" for name, count in zip(ToolsByState._fields, tools, strict=True) if count]
    return f"No tool has room. Of {_count(sum(tools), 'tool')}: {', '.join(at)}."


def _before(count: int) -> str:
    if not count:
        return "No other task is offered before it."
    many = f"More than {MOST_BEFORE:,} tasks" if count > MOST_BEFORE else _count(count, "task")
    return f"{many} {'is' if count == 1 else 'are'} offered before it."


def _error(task: Task) -> str:
    return f"The last error: {_shortened(task.error)}" if task.error else "No error was told."


def _shortened(text: str | None) -> str:
    """Return a text of others on one line, shortened."""
    return shorten_in_the_middle(" ".join((text or "").split()), MOST_CHARS)


def _joined(sentences: list[str]) -> str:
    return " ".join(sentence if sentence.endswith((*".!?…",)) else f"{sentence}." for sentence in sentences)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _since(moment: datetime, now: datetime) -> str:
    return f"since {_time(moment)} ({_duration(now - moment)})"


def _when(moment: datetime, now: datetime) -> str:
    """Return a moment, and in how long it will be."""
    return f"{_time(moment)} (in {_duration(moment - now)})" if moment > now else _time(moment)


def _duration(time: timedelta) -> str:
    """Return a duration in the largest unit of which it has at least two."""
    seconds = max(0, int(time.total_seconds()))
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:,} {name}"
    return f"{seconds} s"
