"""Generate the reference page about states, outcomes and verdicts."""

from collections.abc import Mapping

from broker.schemas import states
from broker.schemas.states import OutcomeRule, State
from tests.support.reference import layout
from tests.support.reference.layout import code, table

_COUNTS = {"always": "yes", "once_started": "if the tool had started it", "never": "no"}


def page() -> str:
    """Return the reference page about states, outcomes and verdicts, as Markdown."""
    return layout.page(
        "States, outcomes and verdicts",
        "This page lists every state of a task, tool and work item, every outcome of an attempt, and every"
        " verdict of `broker explain`.",
        "## States of a task",
        _meanings("state", states.TASK_STATES),
        "## States of a tool",
        _meanings("state", states.TOOL_STATES),
        "## States of a work item",
        "A work item is one attempt of one tool at one task. After its end, its record in the archive has an"
        " outcome instead of a state.",
        _meanings("state", states.WORK_STATES),
        "## Outcomes of an attempt",
        _meanings("outcome", states.OUTCOMES),
        "Each outcome decides what happens to the task:",
        table(
            ["outcome", "counts as an attempt", "the task afterwards"],
            [(code(name), _COUNTS[rule.counts], _afterwards(rule)) for name, rule in states.OUTCOMES.items()],
        ),
        "## Verdicts: why a task has not run yet",
        "`broker explain ID` and `GET /v1/tasks/{id}/explain` return the first verdict of this list that"
        " holds.",
        table(
            ["verdict", "meaning, and what to do"],
            [(code(name), text) for name, text in states.VERDICTS.items()],
        ),
    )


def _meanings(head: str, meanings: Mapping[str, State]) -> str:
    return table([head, "meaning"], [(code(name), state.meaning) for name, state in meanings.items()])


def _afterwards(rule: OutcomeRule) -> str:
    if rule.ends_task:
        return "has ended"
    if rule.backs_off:
        return "is retried after a pause, or is `failed` if no attempt is left"
    if rule.counts == "never":
        return "is available again at once"
    return "is available again at once, or is `failed` if no attempt is left"
