"""Explain in a sentence why the tasks with some needs have no tool."""

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from broker.matching.candidates import ListedTool
from broker.matching.judge import Judge
from broker.matching.mismatch import Mismatch, short_line
from broker.matching.needs import Needs, Remark
from broker.matching.skills import Skills

_LONGEST = 300
# How many tools or mismatches are named; the rest is counted.
_MOST_NAMED = 3

ToolsBySkills = dict[Skills, list[ListedTool]]


class _Candidate(NamedTuple):
    """A tool that does not match, and what its skills lack."""

    mismatches: list[Mismatch]
    id: str


def explain(needs: Needs, tools: ToolsBySkills, judge: Judge) -> Generator[None, None, Remark]:
    """Return why tasks with these needs have no tool, in steps that are each as long as one judgement."""
    if not tools:
        return Remark("no tool is registered")
    able: list[ListedTool] = []
    for skills, with_skills in tools.items():
        if judge.judge(needs, skills):
            able += with_skills
        yield
    online = [tool.id for tool in able if tool.state in ("idle", "busy")]
    if online:
        return Remark(f"{min(online)} can do it, when it has room", corrects=True)
    if able:
        return Remark(short_line(_all_away(able), _LONGEST))
    candidates = []
    for skills, with_skills in tools.items():
        if mismatches := judge.mismatches(needs, skills):
            candidates.append(_Candidate(mismatches, min(tool.id for tool in with_skills)))
        yield
    if candidates:
        reason = _nearest(candidates)
    elif needs.trouble is not None:
        reason = f"it cannot be judged whether a tool has what is needed: {needs.trouble}"
    else:
        reason = f"none of the tools can do it, of {sum(map(len, tools.values()))} that are registered"
    return Remark(short_line(reason, _LONGEST))


def _all_away(able: Sequence[ListedTool]) -> str:
    """Say that the matching tools accept no work now."""
    able = sorted(able, key=lambda tool: tool.id)
    if len(able) > 1:
        return f"only {_listed([tool.id for tool in able])} could do it, and they are offline or draining"
    [only] = able
    if only.state == "draining":
        return f"only {only.id} could do it, and it is draining"
    return f"only {only.id} could do it, and it is offline since {_clock(only.lease_expires_at)}"


def _nearest(candidates: Sequence[_Candidate]) -> str:
    """Return what no tool has, and what the nearest tool has instead."""
    nearest = min(candidates, key=_distance)
    # Other tools may have what the nearest one lacks.
    lacked = [each for each in nearest.mismatches if each.wanted and _nobody_has(each, candidates)]
    if lacked:
        wanted, had = _listed([each.wanted for each in lacked]), _listed([each.had for each in lacked])
        return f"no tool has {wanted}; nearest: {nearest.id} has {had}"
    if not nearest.mismatches[0].wanted:
        # A function says why not, but not how near the skills come.
        reasons = [f"{each.id}: {each.mismatches[0].had}" for each in candidates]
        return f"no tool can do it; {_listed(reasons)}"
    had = _listed([f"{each.had} for {each.wanted}" for each in nearest.mismatches])
    return f"no tool has all that is needed; nearest: {nearest.id} has {had}"


def _distance(candidate: _Candidate) -> tuple[int, int, float, str]:
    """Return how far a tool is from what is needed; any value in a place is nearer than none."""
    absent = sum(mismatch.absent for mismatch in candidate.mismatches)
    gaps = sum(mismatch.gap for mismatch in candidate.mismatches)
    return len(candidate.mismatches), absent, gaps, candidate.id


def _nobody_has(lack: Mismatch, candidates: Sequence[_Candidate]) -> bool:
    return all(any(mismatch.implies(lack) for mismatch in each.mismatches) for each in candidates)


def _listed(texts: Sequence[str]) -> str:
    """Join texts: `a, b and 3 more`."""
    if len(texts) > _MOST_NAMED:
        texts = [*texts[: _MOST_NAMED - 1], f"{len(texts) - _MOST_NAMED + 1} more"]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _clock(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%MZ}" if moment.date() == datetime.now(UTC).date() else f"{moment:%Y-%m-%d %H:%MZ}"
