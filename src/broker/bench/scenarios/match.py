"""`match`: the cost of matching in the assigner, without requests and a service."""

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from broker.bench.figures import Figures
from broker.bench.http import BenchError
from broker.bench.scenarios import Scenario, Size
from broker.bench.stage import Stage
from broker.matching.candidates import CandidateTask, CandidateTool
from broker.matching.matcher import Matcher

_TASKS = 100_000
_TOOLS = 1_000
# The capacity of each tool. There are more tasks than the tools have capacity for.
_CAPACITY = 50
_KINDS_OF_NEEDS = 50
_KINDS_OF_SKILLS = 30
_SKILLS = 10
_SMALL_ROUNDS = 20
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

# The same needs for each strategy.
_NEEDS: dict[str, Callable[[int], Any]] = {
    "contains": lambda skill: {"can": skill},
    "schema": lambda skill: {"properties": {"can": {"contains": {"const": skill}}}, "required": ["can"]},
}


async def _round(stage: Stage, size: Size) -> Figures:
    figures: Figures = {}
    for strategy in _NEEDS:
        figures |= {f"{strategy} {name}": value for name, value in _costs(strategy, size).items()}
    return figures


def _costs(strategy: str, size: Size) -> Figures:
    tasks, tools = _tasks(strategy, size.of(_TASKS)), _tools(size.of(_TOOLS))
    matcher = Matcher(strategy)
    started_at = time.process_time()
    for task in tasks:
        matcher.add_task(task)
    for tool in tools:
        matcher.add_tool(tool)
    added_at = time.process_time()
    pairs = _pair_all(matcher)
    ended_at = time.process_time()
    if not pairs:
        raise BenchError("The matcher found no pairs.")
    return {
        "take in, CPU ms": (added_at - started_at) * 1000,
        "round, CPU ms": (ended_at - added_at) * 1000,
        "pairs": pairs,
        "small round, CPU ms": _small_rounds(strategy, tasks, tools) * 1000,
    }


def _small_rounds(strategy: str, tasks: list[CandidateTask], tools: list[CandidateTool]) -> float:
    """Return the cost of a round in which one of many tools becomes free while most tasks wait."""
    matcher = Matcher(strategy)
    for task in tasks:
        matcher.add_task(task)
    with_room_for_one = [msgspec.structs.replace(tool, load=tool.capacity - 1) for tool in tools]
    for tool in with_room_for_one:
        matcher.add_tool(tool)
    _pair_all(matcher)
    started_at = time.process_time()
    for tool in with_room_for_one[:_SMALL_ROUNDS]:
        matcher.add_tool(tool)
        _pair_all(matcher)
    return (time.process_time() - started_at) / min(_SMALL_ROUNDS, len(tools))


def _pair_all(matcher: Matcher) -> int:
    """Run a round, accept all of its pairs, and return their number."""
    round_ = matcher.round()
    for _ in round_.steps():
        pass
    pairings = round_.pairings()
    for pairing in pairings:
        matcher.settle(pairing, "assigned")
    return len(pairings)


def _tasks(strategy: str, number: int) -> list[CandidateTask]:
    needs = [_raw(_NEEDS[strategy](kind)) for kind in range(_KINDS_OF_NEEDS)]
    generator = random.Random(1)  # noqa: S311 - the same in each round
    return [
        CandidateTask(
            id=f"task-{index}",
            needs=generator.choice(needs),
            priority=generator.randrange(10),
            created_at=_BEGAN + timedelta(seconds=index / 100),
        )
        for index in range(number)
    ]


def _tools(number: int) -> list[CandidateTool]:
    generator = random.Random(2)  # noqa: S311 - the same in each round
    skills = [
        _raw({"can": generator.sample(range(_KINDS_OF_NEEDS), _SKILLS)}) for _ in range(_KINDS_OF_SKILLS)
    ]
    return [
        CandidateTool(id=f"tool-{index}", skills=generator.choice(skills), capacity=_CAPACITY, load=0)
        for index in range(number)
    ]


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


SCENARIO = Scenario(
    name="match",
    says=f"{_TASKS:,} tasks of {_KINDS_OF_NEEDS} kinds are matched with {_TOOLS:,} tools of"
    f" {_KINDS_OF_SKILLS} kinds",
    round=_round,
    ratios={
        f"{strategy} small round : round": (f"{strategy} small round, CPU ms", f"{strategy} round, CPU ms")
        for strategy in _NEEDS
    },
    wanted={f"{strategy} small round : round": "≤ 0.01" for strategy in _NEEDS},
)
