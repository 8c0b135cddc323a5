"""Everything that names a state or an outcome agrees with the tables of states and outcomes."""

import ast
import re
from collections.abc import Iterator
from typing import Any, get_args

import asyncpg
import pytest

from broker.schemas import states
from broker.schemas.overview import Bucket
from broker.schemas.states import (
    OUTCOMES,
    STATES,
    TASK_STATES,
    TOOL_STATES,
    VERDICTS,
    WORK_STATES,
    Outcome,
    Verdict,
)
from broker.schemas.stats import LastMinute, TaskCounts, ToolCounts, WorkCounts
from broker.store import Store, completion, stats
from broker.store.overview import history
from broker.top import view
from tests import ROOT
from tests.support import steps

STORE = ROOT / "src" / "broker" / "store"
DASHBOARD = ROOT / "src" / "broker" / "web" / "dashboard"
LIVE = set(get_args(states.LiveTaskState))
ENDS_TASK = {name for name, rule in OUTCOMES.items() if rule.ends_task}
WENT_WRONG = {name for name, rule in OUTCOMES.items() if rule.went_wrong}
# Every set of outcomes that a statement may list. Each is a column of the table.
SETS = (
    set(OUTCOMES),
    ENDS_TASK,
    WENT_WRONG,
    {name for name, rule in OUTCOMES.items() if rule.counts == "always"},
    {name for name, rule in OUTCOMES.items() if rule.backs_off},
)


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (TOOL_STATES, states.ToolState),
        (WORK_STATES, states.WorkState),
        (TASK_STATES, states.TaskState),
        (OUTCOMES, states.Outcome),
        (VERDICTS, states.Verdict),
        ({**WORK_STATES, **OUTCOMES}, states.AnyWorkState),
        ({name: rule for name, rule in OUTCOMES.items() if rule.sent_by_tool}, states.ChosenOutcome),
    ],
)
def test_tables_have_the_names_that_requests_and_responses_may_contain(
    table: dict[str, Any], kind: Any
) -> None:
    assert set(table) == set(get_args(kind))


def test_a_state_name_has_the_same_meaning_in_every_table() -> None:
    for table in (TOOL_STATES, WORK_STATES, TASK_STATES, OUTCOMES):
        assert table.items() <= STATES.items()


def test_states_of_ended_tasks_are_the_outcomes_that_end_a_task() -> None:
    assert set(TASK_STATES) - LIVE == ENDS_TASK
    assert {name for name, state in TASK_STATES.items() if state.final} == ENDS_TASK | {"failed"}


def test_statistics_count_every_state_and_outcome() -> None:
    assert set(TaskCounts.__struct_fields__) == LIVE
    assert set(ToolCounts.__struct_fields__) == {*TOOL_STATES, "room"}
    assert set(WorkCounts.__struct_fields__) == {*WORK_STATES, "cancel_requested"}
    assert set(LastMinute.__struct_fields__) == {"submitted", *OUTCOMES}
    assert set(OUTCOMES) < set(Bucket.__struct_fields__)
    for outcome in OUTCOMES:
        counted = f"count(*) filter (where outcome = '{outcome}') as {outcome}"
        assert counted in stats.READ.text
        assert counted in history.READ.text


async def test_database_constraints_have_exactly_the_names_of_the_tables(sql: asyncpg.Connection) -> None:
    allowed = {
        ("work_archive", "outcome"): set(OUTCOMES),
        ("work", "state"): set(WORK_STATES),
        # While a task has work, its state is that of the work.
        ("tasks", "state"): LIVE - set(WORK_STATES),
    }
    for (table, column), names in allowed.items():
        rows = await sql.fetch(
            "select pg_get_constraintdef(oid) as definition from pg_constraint"
            " where contype = 'c' and conrelid = cast($1 as regclass)",
            table,
        )
        [listed] = [values for row in rows if (values := _listed(row["definition"], column))]
        assert listed == names, table


def _listed(definition: str, column: str) -> set[str] | None:
    """Return the values in `CHECK ((column = ANY (ARRAY['a'::text, …])))`. None for another constraint."""
    matched = re.fullmatch(rf"CHECK \(\({column} = ANY \(ARRAY\[(.*)\]\)\)\)", definition)
    return set(re.findall(r"'(\w+)'::text", matched[1])) if matched else None


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("outcome", get_args(Outcome))
async def test_store_treats_a_task_as_the_table_of_outcomes_says(
    store: Store, sql: asyncpg.Connection, outcome: Outcome, started: bool
) -> None:
    make = steps.add_running_work if started else steps.add_assigned_work
    made = await make(store, "a", max_attempts=2, retry_backoff_seconds=3600)
    await store.run(completion.end, [steps.new_ending(made.id, outcome)])
    task = await steps.get_task(store, "a")
    rule = OUTCOMES[outcome]
    counts = rule.counts == "always" or (started and rule.counts == "once_started")
    if rule.ends_task:
        assert task.state == outcome
    else:
        assert task.state == ("scheduled" if rule.backs_off else "available")
        assert task.attempt == counts
    await steps.check_invariants(sql)


@pytest.mark.parametrize("outcome", sorted(set(OUTCOMES) - ENDS_TASK))
async def test_task_fails_after_its_last_attempt_that_counts(store: Store, outcome: Outcome) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await store.run(completion.end, [steps.new_ending(made.id, outcome)])
    counts = OUTCOMES[outcome].counts != "never"
    assert (await steps.get_task(store, "a")).state == ("failed" if counts else "available")


def _statements() -> Iterator[tuple[str, str]]:
    """Yield every text in the modules of the store and in the migrations, with the name of its file."""
    for file in sorted((ROOT / "migrations" / "versions").rglob("*.sql")):
        yield file.name, file.read_text()
    for file in sorted([*STORE.rglob("*.py"), *(ROOT / "migrations" / "versions").glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file.name, node.value


def test_statements_name_no_other_states_and_outcomes() -> None:
    seen = set()
    for file, text in _statements():
        for column, value in re.findall(r"\b(state|outcome) (?:=|<>) '(\w+)'", text):
            assert value in (OUTCOMES if column == "outcome" else STATES), f"{file}: {column} {value}"
            seen.add(value)
        for values in re.findall(r"\boutcome (?:not )?in \(('[^)]*)\)", text):
            assert set(re.findall(r"'(\w+)'", values)) in SETS, f"{file}: {values}"
            seen |= set(re.findall(r"'(\w+)'", values))
    assert seen > set(OUTCOMES)


def test_broker_top_has_styles_only_for_states_and_outcomes() -> None:
    assert set(TOOL_STATES) <= set(view._STYLES) <= set(STATES)


def test_dashboard_has_every_colour_in_both_themes_and_no_outcome_names() -> None:
    style = (DASHBOARD / "style.css").read_text()
    for colour in get_args(states.Colour):
        assert len(re.findall(rf"^ +--{colour}: ", style, re.MULTILINE)) == 2, colour
    for module in DASHBOARD.glob("*.js"):
        assert not re.search(r"\btimed_out\b|[\"']released\b", module.read_text()), module.name


def test_dashboard_has_texts_only_for_existing_verdicts() -> None:
    [table] = re.findall(r"const VERDICTS = \{(.*?)\};", (DASHBOARD / "waiting.js").read_text(), re.DOTALL)
    assert set(re.findall(r"^ +(\w+):", table, re.MULTILINE)) <= set(get_args(Verdict))


def test_alerts_and_documentation_list_the_outcomes_of_the_table() -> None:
    alerts = (ROOT / "containers" / "prometheus" / "alerts.yml").read_text()
    wrong, neither = (
        {frozenset(names.split("|")) for names in re.findall(rf'outcome{sign}"([^"]+)"', alerts)}
        for sign in ("=~", "!~")
    )
    assert wrong == {frozenset(WENT_WRONG)}
    assert neither == {frozenset(OUTCOMES) - WENT_WRONG - {"succeeded"}}
    page = (ROOT / "docs" / "operate" / "logs.md").read_text()
    [asked] = re.findall(r"work that the broker ended itself \(([^)]+)\)", page)
    assert set(re.findall(r"\w+", asked)) == {
        name for name, rule in OUTCOMES.items() if not rule.sent_by_tool
    }
