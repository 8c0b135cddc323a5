"""The states of tasks, tools and work, and the outcomes of attempts. Each name is defined here.

The `Literal` types are the values of requests and responses. The tables define the meaning of each name.
Tests compare the tables with the types, the constraints of the database, the store, the dashboard and the
documentation.
"""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

ToolState = Literal["idle", "busy", "draining", "offline"]
WorkState = Literal["assigned", "running"]
LiveTaskState = Literal["scheduled", "available", WorkState, "failed"]
TaskState = Literal[LiveTaskState, "succeeded", "cancelled"]
ChosenOutcome = Literal["succeeded", "failed", "cancelled", "released"]
Outcome = Literal[ChosenOutcome, "lost", "timed_out"]
AnyWorkState = Literal[WorkState, Outcome]

#: The dashboard's style sheet defines these colours.
Colour = Literal["blue", "green", "amber", "red", "purple", "pink", "grey"]


class State(Struct, frozen=True):
    """The meaning of a state, and its display.

    Args:
        label: The name for people.
        colour: The colour on the dashboard.
        mark: A character that stands for the state in small spaces.
        final: Whether the broker leaves this state only on request.
        meaning: The meaning in sentences, for the documentation.
    """

    label: str
    colour: Colour
    mark: str = ""
    final: bool = False
    meaning: str = ""


class OutcomeRule(State, frozen=True, kw_only=True):
    """The meaning of an outcome, and its effect on the task.

    Args:
        sent_by_tool: Whether a tool may complete its work with this outcome. Only the broker sets the others.
        ends_task: Whether the task ends. Otherwise it becomes available again, or `failed`.
        counts: When the attempt counts towards `max_attempts`.
        backs_off: Whether the task becomes available again only after a delay.
        went_wrong: Whether the outcome needs attention.
    """

    final: bool = True
    sent_by_tool: bool = True
    ends_task: bool = False
    counts: Literal["always", "once_started", "never"]
    backs_off: bool = False
    went_wrong: bool = False


TOOL_STATES: Mapping[str, State] = {
    "busy": State("busy", "blue", meaning="The tool has as much work as its capacity allows."),
    "idle": State("idle", "green", meaning="The tool has free capacity. Assigners may assign work to it."),
    "draining": State(
        "draining",
        "amber",
        meaning="The tool finishes its current work and gets no new work. An operator or the tool set this.",
    ),
    "offline": State(
        "offline",
        "grey",
        meaning="The tool sent no request for longer than its lease. Its work is lost, and its tasks are"
        " available to other tools. With its next request, the tool is online again.",
    ),
}

WORK_STATES: Mapping[str, State] = {
    "assigned": State("assigned", "blue", meaning="The work belongs to a tool that has not started it yet."),
    "running": State("running", "blue", "▸", meaning="The tool is doing the work."),
}

OUTCOMES: Mapping[str, OutcomeRule] = {
    "succeeded": OutcomeRule(
        "succeeded",
        "green",
        ends_task=True,
        counts="always",
        meaning="The tool completed the work. The task has its result.",
    ),
    "failed": OutcomeRule(
        "failed",
        "red",
        "✕",
        counts="always",
        backs_off=True,
        went_wrong=True,
        meaning="A `failed` attempt did not succeed. Its `error` says why. A task is `failed` when it has no"
        " attempt left. It stays `failed` until somebody retries or cancels it.",
    ),
    "timed_out": OutcomeRule(
        "timed out",
        "purple",
        "◷",
        sent_by_tool=False,
        counts="always",
        backs_off=True,
        went_wrong=True,
        meaning="The attempt ran for longer than the `timeout_seconds` of the task.",
    ),
    "lost": OutcomeRule(
        "lost",
        "pink",
        "?",
        sent_by_tool=False,
        counts="once_started",
        went_wrong=True,
        meaning="The tool did not finish the work: its lease expired, it registered again, somebody deleted"
        " it, or it did not start the work in time.",
    ),
    "cancelled": OutcomeRule(
        "cancelled",
        "amber",
        "–",
        ends_task=True,
        counts="never",
        meaning="Somebody cancelled the task or its work.",
    ),
    "released": OutcomeRule(
        "released",
        "grey",
        "↩",
        counts="never",
        meaning="The tool gave the work back, or somebody cancelled it with `requeue`.",
    ),
}

#: A task with work has the state of its work. A task that has ended has the outcome that ended it as its
#: state. A failed task waits until somebody retries or cancels it.
TASK_STATES: Mapping[str, State] = {
    "scheduled": State(
        "scheduled",
        "amber",
        meaning="The task waits until its `not_before`, or until the delay after an unsuccessful attempt has"
        " passed.",
    ),
    "available": State("available", "blue", meaning="The task waits until an assigner assigns it to a tool."),
    "assigned": WORK_STATES["assigned"],
    "running": WORK_STATES["running"],
    "failed": OUTCOMES["failed"],
    "succeeded": OUTCOMES["succeeded"],
    "cancelled": OUTCOMES["cancelled"],
}

Verdict = Literal[
    "ended",
    "failed",
    "running",
    "assigned",
    "not_before_its_time",
    "backing_off",
    "no_assigner",
    "refused_by_assigner",
    "no_tool_available",
    "waiting_for_assigner",
]
#: Why a task has not run yet: the meaning of each verdict, and what to do. The first one that applies counts.
VERDICTS: Mapping[Verdict, str] = {
    "ended": "The task has ended. Read its result, or its record in the archive.",
    "failed": "The task has no attempt left. Read its `error`, fix the cause, and retry the task.",
    "running": "A tool is working on the task. Read its reports to see how far it is.",
    "assigned": "A tool has the task and has not started it. If it does not start in time, the task becomes"
    " available again.",
    "not_before_its_time": "The task may not run before the time `not_before`. Wait until then.",
    "backing_off": "The last attempt did not succeed. The broker waits before the next one. The first delay"
    " is at most `retry_backoff_seconds`, and this limit doubles with each attempt.",
    "no_assigner": "No assigner has asked for tasks for a minute. Start one, for example `broker assign`.",
    "refused_by_assigner": "The assigner cannot assign the task, and its remark says why. For example, no"
    " tool has the skills. Start a tool that matches the needs, or submit another task with correct `needs`.",
    "no_tool_available": "Every tool is busy, draining or offline. Wait until one is free, or start another"
    " one.",
    "waiting_for_assigner": "The task and at least one tool are available. The assigner has not paired them"
    " yet. If this lasts, check that a tool has the skills that the task needs.",
}

#: Every state and outcome by its name. A name has the same meaning everywhere.
STATES: Mapping[str, State] = {**TOOL_STATES, **WORK_STATES, **TASK_STATES, **OUTCOMES}
