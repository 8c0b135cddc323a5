"""Explain to people why the tasks with some needs have no tool."""

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from broker.matching.candidates import ListedTool
from broker.matching.judge import Judge
from broker.matching.mismatch import Mismatch, short_line
from broker.matching.needs import Needs, Reason
from broker.matching.skills import Skills

_LONGEST = 300
# A text names this many tools or mismatches, and counts the rest.
_MOST_NAMED = 3

ToolsBySkills = dict[Skills, list[ListedTool]]


class _Candidate(NamedTuple):
    """A tool that does not match, with its mismatches."""

    mismatches: list[Mismatch]
    id: str


def explain(needs: Needs, tools: ToolsBySkills, judge: Judge) -> Generator[None, None, Reason]:
    """Return the reason why tasks with these needs have no tool.

    It yields after each judgement, so the caller can run other tasks in between.
    """
    if not tools:
        return Reason("No tool is registered.")
    able: list[ListedTool] = []
    for skills, with_skills in tools.items():
        if judge.judge(needs, skills):
            able += with_skills
        yield
    online = [tool.id for tool in able if tool.state in ("idle", "busy")]
    if online:
        return Reason(f"Tool {min(online)} can do this task when it has free capacity.", corrects=True)
    if able:
        return Reason(short_line(_describe_away(able), _LONGEST))
    candidates = []
    for skills, with_skills in tools.items():
        if mismatches := judge.mismatches(needs, skills):
            candidates.append(_Candidate(mismatches, min(tool.id for tool in with_skills)))
        yield
    if candidates:
        reason = _describe_closest(candidates)
    elif needs.trouble is not None:
        reason = f"The assigner cannot compare the needs of this task with the tools: {needs.trouble}"
    else:
        reason = f"No tool can do this task. Registered tools: {sum(map(len, tools.values()))}."
    return Reason(short_line(reason, _LONGEST))


def _describe_away(able: Sequence[ListedTool]) -> str:
    """Describe the state of the matching tools, none of which accepts work now."""
    able = sorted(able, key=lambda tool: tool.id)
    if len(able) > 1:
        ids = _listed([tool.id for tool in able])
        return f"Only the tools {ids} can do this task, and they are offline or draining."
    [only] = able
    if only.state == "draining":
        return f"Only tool {only.id} can do this task, and it is draining."
    since = _clock(only.lease_expires_at)
    return f"Only tool {only.id} can do this task, and it has been offline since {since}."


def _describe_closest(candidates: Sequence[_Candidate]) -> str:
    """Describe the needs that no tool meets, and the skills of the tool that matches best."""
    closest = min(candidates, key=_distance)
    # Another tool may have the skills that this tool lacks.
    lacked = [each for each in closest.mismatches if each.wanted and _nobody_has(each, candidates)]
    if lacked:
        wanted, had = _listed([each.wanted for each in lacked]), _listed([each.had for each in lacked])
        return f"No tool has what the task needs: {wanted}. The closest match, {closest.id}, has {had}."
    if not closest.mismatches[0].wanted:
        # A function gives a reason, but no measure of the distance.
        reasons = [f"{each.id}: {each.mismatches[0].had}" for each in candidates]
        return f"No tool can do this task. {'; '.join(_first_of(reasons))}"
    had = _listed([f"{each.had} instead of {each.wanted}" for each in closest.mismatches])
    return f"No single tool has everything that the task needs. The closest match, {closest.id}, has {had}."


def _distance(candidate: _Candidate) -> tuple[int, int, float, str]:
    """Return the distance of a tool from the needs. Any value in a place is closer than no value."""
    absent = sum(mismatch.absent for mismatch in candidate.mismatches)
    gaps = sum(mismatch.gap for mismatch in candidate.mismatches)
    return len(candidate.mismatches), absent, gaps, candidate.id


def _nobody_has(lack: Mismatch, candidates: Sequence[_Candidate]) -> bool:
    return all(any(mismatch.implies(lack) for mismatch in each.mismatches) for each in candidates)


def _listed(texts: Sequence[str]) -> str:
    """Join texts, like `a, b and 3 more`."""
    *others, last = _first_of(texts)
    return " and ".join(filter(None, (", ".join(others), last)))


def _first_of(texts: Sequence[str]) -> Sequence[str]:
    """Return the first texts, with the number of the others as the last text."""
    if len(texts) <= _MOST_NAMED:
        return texts
    return [*texts[: _MOST_NAMED - 1], f"{len(texts) - _MOST_NAMED + 1} more"]


def _clock(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%MZ}" if moment.date() == datetime.now(UTC).date() else f"{moment:%Y-%m-%d %H:%MZ}"
