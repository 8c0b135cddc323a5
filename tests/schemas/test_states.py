"""The tables of states and outcomes are the only definition: everything that names one agrees with them."""

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
#: Every set of outcomes that a statement may list: each is a column of the table.
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


def test_a_name_means_the_same_wherever_it_stands() -> None:
    for table in (TOOL_STATES, WORK_STATES, TASK_STATES, OUTCOMES):
        assert table.items() <= STATES.items()


def test_a_task_that_is_not_live_has_ended_by_an_outcome_that_ends_it() -> None:
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


async def test_the_database_accepts_these_names_and_no_other(sql: asyncpg.Connection) -> None:
    allowed = {
        ("work_archive", "outcome"): set(OUTCOMES),
        ("work", "state"): set(WORK_STATES),
        # While a task has work, its state is that of the work.
        ("tasks", "state"): LIVE - {"running"},
    }
    for (table, column), names in allowed.items():
        rows = await sql.fetch(
            "select pg_get_constraintdef(oid) as definition from pg_constraint"
            " where contype = 'c' and conrelid = cast($1 as regclass)",
            table,
        )
        [listed] = [found for row in rows if (found := _listed(row["definition"], column))]
        assert listed == names, table


def _listed(definition: str, column: str) -> set[str] | None:
    """The values in `CHECK ((column = ANY (ARRAY['a'::text, …])))`; None for any other constraint."""
    matched = re.fullmatch(rf"CHECK \(\({column} = ANY \(ARRAY\[(.*)\]\)\)\)", definition)
    return set(re.findall(r"'(\w+)'::text", matched[1])) if matched else None


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("outcome", get_args(Outcome))
async def test_the_store_does_with_a_task_what_the_table_says(
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
async def test_a_last_attempt_that_counts_fails_the_task(store: Store, outcome: Outcome) -> None:
    made = await steps.add_running_work(store, "a", max_attempts=1)
    await store.run(completion.end, [steps.new_ending(made.id, outcome)])
    counts = OUTCOMES[outcome].counts != "never"
    assert (await steps.get_task(store, "a")).state == ("failed" if counts else "available")


def _statements() -> Iterator[tuple[str, str]]:
    """Every text in the modules of the store, and the SQL of the migrations, with the file that has it."""
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


def test_broker_top_has_styles_for_states_and_outcomes_alone() -> None:
    assert set(TOOL_STATES) <= set(view._STYLES) <= set(STATES)


def test_the_dashboard_has_every_colour_in_both_themes_and_names_no_outcome_itself() -> None:
    style = (DASHBOARD / "style.css").read_text()
    for colour in get_args(states.Colour):
        assert len(re.findall(rf"^ +--{colour}: ", style, re.MULTILINE)) == 2, colour
    for module in DASHBOARD.glob("*.js"):
        assert not re.search(r"\btimed_out\b|[\"']released\b", module.read_text()), module.name


def test_the_dashboard_words_only_verdicts_that_there_are() -> None:
    [table] = re.findall(r"const VERDICTS = \{(.*?)\};", (DASHBOARD / "waiting.js").read_text(), re.DOTALL)
    assert set(re.findall(r"^ +(\w+):", table, re.MULTILINE)) <= set(get_args(Verdict))


def test_alerts_and_documentation_name_the_outcomes_that_they_mean() -> None:
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
