"""Candidates for tests, and rounds with them."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import Raw

from broker.matching.candidates import CandidateTask, CandidateTool, ListedTool
from broker.matching.matcher import Matcher
from broker.matching.round import Pairing
from broker.schemas.states import ToolState

START = datetime(2026, 1, 1, tzinfo=UTC)


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


def task(
    id: str,  # noqa: A002 (the field's name)
    needs: Any = None,
    *,
    priority: int = 0,
    at: float = 0,
    remark: str | None = None,
) -> CandidateTask:
    """Return an available task that was submitted `at` seconds after the start."""
    created_at = START + timedelta(seconds=at)
    return CandidateTask(id=id, needs=raw(needs), priority=priority, created_at=created_at, remark=remark)


def tool(id: str, skills: Any = None, *, capacity: int = 1, load: int = 0) -> CandidateTool:  # noqa: A002
    return CandidateTool(id=id, skills=raw(skills), capacity=capacity, load=load)


def registered(id: str, skills: Any, state: ToolState = "idle", lease: datetime = START) -> ListedTool:  # noqa: A002
    return ListedTool(id=id, skills=raw(skills), state=state, lease_expires_at=lease)


def pairings(matcher: Matcher) -> list[Pairing]:
    """Run a round and return its pairings."""
    round_ = matcher.round()
    for _ in round_.steps():
        pass
    return round_.pairings()


def paired(matcher: Matcher) -> dict[str, str]:
    """Run a round, settle its pairings as assigned, and return the tool id for each task id."""
    assigned = pairings(matcher)
    for pairing in assigned:
        matcher.settle(pairing, "assigned")
    return {pairing.task.id: pairing.tool.id for pairing in assigned}
