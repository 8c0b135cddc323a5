"""The states of tasks, tools and work, and the outcomes of attempts."""

from typing import Literal

ToolState = Literal["idle", "busy", "draining", "offline"]
TaskState = Literal["scheduled", "available", "assigned", "running", "failed", "succeeded", "cancelled"]
LiveTaskState = Literal["scheduled", "available", "assigned", "running", "failed"]
WorkState = Literal["assigned", "running"]
ChosenOutcome = Literal["succeeded", "failed", "cancelled", "released"]
Outcome = Literal["succeeded", "failed", "cancelled", "released", "lost", "timed_out"]
AnyWorkState = Literal[
    "assigned", "running", "succeeded", "failed", "cancelled", "released", "lost", "timed_out"
]
