"""The life cycle of tasks as a small model: what the service has to be like, after any steps."""

from dataclasses import dataclass, field

from broker.schemas.states import OUTCOMES

#: The states of a task that has ended.
ENDED = {name for name, rule in OUTCOMES.items() if rule.ends_task}


@dataclass
class Task:
    """A task as the model has it."""

    max_attempts: int
    backs_off: bool
    state: str = "available"
    attempt: int = 0


@dataclass
class Tool:
    """A tool as the model has it."""

    capacity: int
    draining: bool = False
    offline: bool = False


@dataclass
class Work:
    """Work under way, and its record when it has ended."""

    task: str
    tool: str | None
    attempt: int
    state: str = "assigned"
    cancel: bool = False
    requeue: bool = False
    said: str | None = None
    late: bool = False


@dataclass
class Model:
    """Where everything is."""

    tasks: dict[str, Task] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    archive: dict[str, Work] = field(default_factory=dict)
    # Tasks that were deleted while they had no work: their records have ids that we do not know.
    deleted: int = 0

    def load(self, tool: str) -> int:
        return sum(work.tool == tool for work in self.work.values())

    def tool_state(self, id_: str) -> str:
        tool = self.tools[id_]
        if tool.offline:
            return "offline"
        if tool.draining:
            return "draining"
        return "idle" if self.load(id_) < tool.capacity else "busy"

    def task_state(self, id_: str) -> str:
        state = self.tasks[id_].state
        return self.work[str(self.of_task(id_))].state if state == "assigned" else state

    def in_state(self, state: str) -> list[str]:
        return sorted(id_ for id_, task in self.tasks.items() if task.state == state)

    def live(self) -> list[str]:
        return sorted(id_ for id_, task in self.tasks.items() if task.state not in ENDED)

    def available(self) -> list[str]:
        return self.in_state("available")

    def idle(self) -> list[str]:
        return sorted(id_ for id_ in self.tools if self.tool_state(id_) == "idle")

    def waits_since(self, *, late: bool) -> list[str]:
        """Records of tasks that wait again or are held since; with a late result, or without one."""
        return sorted(
            id_
            for id_, record in self.archive.items()
            if record.late is late and self.tasks[record.task].state in ("available", "scheduled", "failed")
        )

    def heard(self, tool: str | None) -> None:
        """A tool that calls about work that has ended is there."""
        if tool in self.tools:
            self.tools[tool].offline = False

    def of_task(self, task: str) -> str | None:
        return next((id_ for id_, work in self.work.items() if work.task == task), None)

    def of_tool(self, tool: str) -> list[str]:
        return [id_ for id_, work in self.work.items() if work.tool == tool]

    def end(self, id_: str, said: str, *, retry: bool = True) -> None:
        """Work ends, in whatever way."""
        work = self.work.pop(id_)
        task = self.tasks[work.task]
        outcome = said
        if work.cancel and said != "succeeded":
            outcome = "released" if work.requeue else "cancelled"
        rule = OUTCOMES[outcome]
        counts = rule.counts == "always" or (rule.counts == "once_started" and work.state == "running")
        work.state, work.said = outcome, said
        self.archive[id_] = work
        if rule.ends_task:
            task.state = outcome
            return
        task.attempt += counts
        if counts and (not retry or task.attempt >= task.max_attempts):
            task.state = "failed"
        elif rule.backs_off and task.backs_off:
            task.state = "scheduled"
        else:
            task.state = "available"
