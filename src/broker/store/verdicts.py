"""Verdicts: why a task has not run yet, as a word and in sentences, derived from the facts about it."""

from datetime import datetime, timedelta
from typing import NamedTuple

from broker.schemas.limits import ASSIGNER_ABSENT_SECONDS
from broker.schemas.overview import MOST_CHARS
from broker.schemas.states import Verdict
from broker.schemas.tasks import Task
from broker.texts import shorten_in_the_middle

# The maximum number of tasks to count before a task. If there are more, the verdict says "more than".
MOST_BEFORE = 1_000


class ToolsByState(NamedTuple):
    """The number of tools in each state.

    Tools that are not available are counted only if no tool is available.
    """

    available: int
    busy: int = 0
    draining: int = 0
    offline: int = 0


class WorkFacts(NamedTuple):
    """The facts about the work of a task.

    The work must start, or end, by `deadline_at`. With `cancel_requeue`, the task of cancelled work
    becomes available again. The last report arrived at `reported_at` with the text `message`.
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

    `before` is how many available tasks come before it, `assigner_seen_at` when an assigner last asked
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
        return f"The task was cancelled{at}. To run it, submit it again with another id."
    return f"The task succeeded{at}, after {_count(task.attempt, 'attempt')}. Its result is available."


def _failed(task: Task) -> str:
    at = f" at {_time(task.ended_at)}" if task.ended_at else ""
    return (
        f"The task failed{at}, after {_count(task.attempt, 'attempt')} (max_attempts is {task.max_attempts})."
        f" {_error(task)} Fix the cause, then retry or cancel the task."
    )


def _running(facts: TaskFacts) -> str:
    work, now = facts.work, facts.now
    if work is None or work.started_at is None:
        return "A tool is running the task."
    sentences = [
        f"Tool {work.tool_id} has been running the task {_since(work.started_at, now)}.",
        f"This is attempt {facts.task.attempt + 1} of at most {facts.task.max_attempts}.",
    ]
    if work.progress is not None:
        sentences.append(f"The task is {work.progress:.0%} done.")
    if work.reported_at is not None:
        ago = f"{_duration(now - work.reported_at)} ago"
        sentences.append(
            f"The tool reported {ago}: {_shortened(work.message)}"
            if work.message
            else f"The tool sent its last report {ago}."
        )
    if work.cancel_requested:
        sentences.append(f"The broker has asked the tool to stop. When it stops, {_after_cancel(work)}.")
    if work.deadline_at is not None:
        sentences.append(f"The attempt times out at {_when(work.deadline_at, now)}.")
    return _joined(sentences)


def _assigned(facts: TaskFacts) -> str:
    work = facts.work
    if work is None:
        return "The task is assigned to a tool, which has not started it yet."
    since = _since(work.assigned_at, facts.now)
    sentences = [f"Tool {work.tool_id} has had the task {since} and has not started it yet."]
    if work.deadline_at is not None:
        deadline = _when(work.deadline_at, facts.now)
        sentences.append(f"If the tool does not start it by {deadline}, the task becomes available again.")
    if work.cancel_requested:
        sentences.append(f"The broker has asked the tool to stop. When it stops, {_after_cancel(work)}.")
    return _joined(sentences)


def _after_cancel(work: WorkFacts) -> str:
    return "the task becomes available again" if work.cancel_requeue else "the task is cancelled"


def _not_due(facts: TaskFacts) -> tuple[Verdict, str]:
    task, due_at = facts.task, facts.due_at
    # Upkeep makes a task available shortly after its not_before time. Until then, report the same verdict.
    if task.not_before is not None and (task.not_before > facts.now or task.not_before == due_at):
        start = _when(task.not_before, facts.now)
        return "not_before_its_time", f"The task may not run before {start}, its not_before time."
    until = f" until {_when(due_at, facts.now)}" if due_at else ""
    return "backing_off", (
        f"Attempt {task.attempt} of at most {task.max_attempts} did not succeed. The task waits{until} before"
        f" the next attempt. {_error(task)}"
    )


def _waiting(facts: TaskFacts) -> tuple[Verdict, str]:
    tools = facts.tools
    if facts.assigner_seen_at is None:
        return "no_assigner", (
            "No assigner has ever asked for tasks, so no tool gets a task. Start an assigner, for example"
            " with `broker assign`."
        )
    silence = facts.now - facts.assigner_seen_at
    if silence > timedelta(seconds=ASSIGNER_ABSENT_SECONDS):
        asked = f"No assigner has asked for tasks for {_duration(silence)}."
        return "no_assigner", f"{asked} Check whether your assigner is running."
    if facts.task.remark is not None:
        return "refused_by_assigner", f"The assigner says: {_shortened(facts.task.remark)}"
    if not tools.available:
        return "no_tool_available", _no_tool(tools)
    tools_are = "1 tool is" if tools.available == 1 else f"{tools.available:,} tools are"
    return "waiting_for_assigner", (
        f"An assigner is running and {tools_are} available, but this task is not assigned yet. The tools that"
        f" match it may be busy. {_before(facts.before)}"
    )


def _no_tool(tools: ToolsByState) -> str:
    if not sum(tools):
        return "No tool is registered. Start a tool that can run the task."
    counts = [f"{count:,} {name}" for name, count in zip(ToolsByState._fields, tools, strict=True) if count]
    return f"No tool is available. Registered: {', '.join(counts)}."


def _before(count: int) -> str:
    if not count:
        return "No other task comes first."
    if count == 1:
        return "1 task comes first."
    number = f"More than {MOST_BEFORE:,}" if count > MOST_BEFORE else f"{count:,}"
    return f"{number} tasks come first."


def _error(task: Task) -> str:
    if not task.error:
        return "The tool reported no error text."
    return _joined([f"The last error: {_shortened(task.error)}"])


def _shortened(text: str | None) -> str:
    """Return a client's text, which may be long, on one line and shortened."""
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
    """Return a time, and for a future time how long it is until then."""
    return f"{_time(moment)} (in {_duration(moment - now)})" if moment > now else _time(moment)


def _duration(time: timedelta) -> str:
    """Format a duration in the largest unit in which its value is at least 2."""
    seconds = max(0, int(time.total_seconds()))
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:,} {name}"
    return f"{seconds} s"
