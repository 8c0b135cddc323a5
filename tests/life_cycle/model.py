"""A small model of the life cycle of tasks: the state that the service must have after any steps."""

from dataclasses import dataclass, field

from broker.schemas.states import OUTCOMES

#: The states of a task that has ended.
ENDED = {name for name, rule in OUTCOMES.items() if rule.ends_task}


@dataclass
class Task:
    """A task in the model."""

    max_attempts: int
    backs_off: bool
    state: str = "available"
    attempt: int = 0


@dataclass
class Tool:
    """A tool in the model."""

    capacity: int
    draining: bool = False
    offline: bool = False


@dataclass
class Work:
    """A work item, and after its end its archive record."""

    task: str
    tool: str | None
    attempt: int
    state: str = "assigned"
    cancel: bool = False
    requeue: bool = False
    reported: str | None = None
    late: bool = False


@dataclass
class Model:
    """The state of all tasks, tools and work items."""

    tasks: dict[str, Task] = field(default_factory=dict)
    tools: dict[str, Tool] = field(default_factory=dict)
    work: dict[str, Work] = field(default_factory=dict)
    archive: dict[str, Work] = field(default_factory=dict)
    # The number of tasks that were deleted while they had no work. The ids of their records are unknown.
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

    def records_of_waiting_tasks(self, *, late: bool) -> list[str]:
        """Return the records, with or without a late result, of tasks that wait again or have failed."""
        return sorted(
            id_
            for id_, record in self.archive.items()
            if record.late is late and self.tasks[record.task].state in ("available", "scheduled", "failed")
        )

    def renew_lease(self, tool: str | None) -> None:
        """Bring a tool back online, because it has sent a request."""
        if tool in self.tools:
            self.tools[tool].offline = False

    def of_task(self, task: str) -> str | None:
        return next((id_ for id_, work in self.work.items() if work.task == task), None)

    def of_tool(self, tool: str) -> list[str]:
        return [id_ for id_, work in self.work.items() if work.tool == tool]

    def end(self, id_: str, reported: str, *, retry: bool = True) -> None:
        """End a work item with the outcome that the tool reports, or that the broker decides."""
        work = self.work.pop(id_)
        task = self.tasks[work.task]
        outcome = reported
        if work.cancel and reported != "succeeded":
            outcome = "released" if work.requeue else "cancelled"
        rule = OUTCOMES[outcome]
        counts = rule.counts == "always" or (rule.counts == "once_started" and work.state == "running")
        work.state, work.reported = outcome, reported
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
