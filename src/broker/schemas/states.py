"""The states of tasks, tools and work, and the outcomes of attempts. Each name is defined here.

The `Literal` types are what requests and responses may contain. The tables say what each name means. Tests
compare the tables with the types, the database's constraints, the store, the dashboard and the documentation.
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
Colour = Literal["accent", "good", "odd", "bad", "slow", "gone", "away"]


class State(Struct, frozen=True):
    """What a state means, and how people see it.

    Args:
        label: The state in words.
        colour: Its colour on the dashboard.
        mark: A sign that stands for it where there is no room for words.
        final: Whether the broker does nothing more by itself.
    """

    label: str
    colour: Colour
    mark: str = ""
    final: bool = False


class OutcomeRule(State, frozen=True, kw_only=True):
    """What an outcome means, and what becomes of the task.

    Args:
        sent_by_tool: Whether a tool may complete its work so. The broker alone decides on the others.
        ends_task: Whether the task has ended. Otherwise the broker offers it again, or the task has failed.
        counts: Whether the attempt counts towards `max_attempts`.
        backs_off: Whether the broker waits before it offers the task again.
        went_wrong: Whether somebody should look at it.
    """

    final: bool = True
    sent_by_tool: bool = True
    ends_task: bool = False
    counts: Literal["always", "once_started", "never"]
    backs_off: bool = False
    went_wrong: bool = False


TOOL_STATES: Mapping[str, State] = {
    "busy": State("busy", "accent"),
    "idle": State("idle", "good"),
    "draining": State("draining", "odd"),
    "offline": State("offline", "away"),
}

WORK_STATES: Mapping[str, State] = {
    "assigned": State("assigned", "accent"),
    "running": State("running", "accent", "▸"),
}

OUTCOMES: Mapping[str, OutcomeRule] = {
    "succeeded": OutcomeRule("succeeded", "good", ends_task=True, counts="always"),
    "failed": OutcomeRule("failed", "bad", "✕", counts="always", backs_off=True, went_wrong=True),
    "timed_out": OutcomeRule(
        "timed out", "slow", "◷", sent_by_tool=False, counts="always", backs_off=True, went_wrong=True
    ),
    "lost": OutcomeRule("lost", "gone", "?", sent_by_tool=False, counts="once_started", went_wrong=True),
    "cancelled": OutcomeRule("cancelled", "odd", "–", ends_task=True, counts="never"),
    "released": OutcomeRule("released", "away", "↩", counts="never"),
}

#: A task that has an attempt under way is in the state of its work. A task that has ended is in the state of
#: the outcome that ended it. A task that has failed keeps waiting for somebody to retry or delete it.
TASK_STATES: Mapping[str, State] = {
    "scheduled": State("scheduled", "odd"),
    "available": State("available", "accent"),
    "assigned": WORK_STATES["assigned"],
    "running": WORK_STATES["running"],
    "failed": OUTCOMES["failed"],
    "succeeded": OUTCOMES["succeeded"],
    "cancelled": OUTCOMES["cancelled"],
}

#: Every state and outcome by its name: a name means the same wherever it stands.
STATES: Mapping[str, State] = {**TOOL_STATES, **WORK_STATES, **TASK_STATES, **OUTCOMES}
