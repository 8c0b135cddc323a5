"""The table of PostgreSQL's error codes, and the memory of the causes that they report."""

import re

import asyncpg
import structlog

from broker.errors import DatabaseTrouble, Locked
from broker.store import database_errors
from broker.store.database_errors import CLASSES, CODES, Entry, Meaning
from broker.store.troubles import Troubles
from tests import ROOT

OPERATIONS = ROOT / "docs" / "operate" / "postgresql.md"


def test_the_error_table_has_every_class_of_the_driver() -> None:
    errors = {each for each in vars(asyncpg.exceptions).values() if isinstance(each, type)}
    known = {state for each in errors if (state := getattr(each, "sqlstate", None))}
    assert {state[:2] for state in known} <= CLASSES.keys()
    assert {code[:2] for code in CODES} <= CLASSES.keys()
    assert CODES.keys() >= database_errors.UNUSABLE


def test_every_problem_has_a_cause_for_the_log() -> None:
    without_cause = {Meaning.VALUE, Meaning.DEFECT, Meaning.RETRY, Meaning.LOST}
    for code, line in {**CLASSES, **CODES}.items():
        assert bool(line.cause) == (line.meaning not in without_cause), code


def test_the_documentation_has_the_error_table() -> None:
    def row(code: str, line: Entry) -> str:
        return f"| `{code}` {line.name} | {line.meaning.value} |"

    rows = [row(*each) for each in CLASSES.items()] + [row(*each) for each in CODES.items()]
    written = [line for line in OPERATIONS.read_text().splitlines() if re.match(r"\| `[0-9A-Z]{2,5}` ", line)]
    assert written == rows


def test_a_cause_is_logged_once_while_it_lasts() -> None:
    now = 0.0
    troubles = Troubles(lambda: now)
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            troubles.note("submission.submit", DatabaseTrouble("the disk of the database is full"))
            now += 1
        troubles.note("work.start", DatabaseTrouble("the database is out of memory"))
    assert [line["cause"] for line in logs] == [
        "the disk of the database is full",
        "the database is out of memory",
    ]


def test_readiness_names_a_cause_until_the_step_succeeds_or_some_seconds_pass() -> None:
    now = 0.0
    troubles = Troubles(lambda: now)
    troubles.note("submission.submit", DatabaseTrouble("one"))
    troubles.note("work.start", DatabaseTrouble("two"))
    troubles.note("work.report", Locked("three"))
    assert troubles.causes() == ["one", "three", "two"]
    assert troubles.causes(of_service=True) == ["one", "two"]
    troubles.clear("submission.submit")
    assert troubles.causes() == ["three", "two"]
    now = 10.0
    assert troubles.causes() == []
    assert not troubles
