"""Explanations: why the tasks of a kind have no tool, in a sentence."""

from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from broker.matching.judge import Judge
from broker.matching.kinds import Needs, Remark, Skills
from broker.matching.misfit import Misfit, cut
from broker.matching.offers import RegisteredTool

_LONGEST = 300
# So many of a kind are named.
_NAMED = 3

Tools = dict[Skills, list[RegisteredTool]]


class _Candidate(NamedTuple):
    """A tool that lacks something.

    Args:
        misfits: What it is; nothing: nobody can say.
        id: The tool's id.
    """

    misfits: list[Misfit]
    id: str


def explain(needs: Needs, tools: Tools, judge: Judge) -> Generator[None, None, Remark]:
    """Why tasks with these needs have no tool; a step is as long as a judgement.

    Args:
        needs: The kind of needs.
        tools: All tools that are registered.
        judge: Knows who matches.
    """
    if not tools:
        return Remark("no tool is registered")
    able: list[RegisteredTool] = []
    for skills, some in tools.items():
        if judge.judge(needs, skills):
            able += some
        yield
    up = [tool.id for tool in able if tool.state in ("idle", "busy")]
    if up:
        return Remark(f"{min(up)} can do it, when it has room", corrects=True)
    if able:
        return Remark(cut(_all_away(able), _LONGEST))
    candidates = []
    for skills, some in tools.items():
        candidates.append(_Candidate(judge.misfits(needs, skills), min(tool.id for tool in some)))
        yield
    said = _nearest([each for each in candidates if each.misfits])
    if said is None and needs.trouble is not None:
        said = f"it cannot be judged whether a tool has what is needed: {needs.trouble}"
    if said is None:
        said = f"none of the tools can do it, of {sum(map(len, tools.values()))} that are registered"
    return Remark(cut(said, _LONGEST))


def _all_away(able: Sequence[RegisteredTool]) -> str:
    """That those who could do it take no work now."""
    able = sorted(able, key=lambda tool: tool.id)
    if len(able) > 1:
        return f"only {_listed([tool.id for tool in able])} could do it, and they are offline or draining"
    [only] = able
    if only.state == "draining":
        return f"only {only.id} could do it, and it is draining"
    return f"only {only.id} could do it, and it is offline since {_clock(only.lease_expires_at)}"


def _nearest(candidates: Sequence[_Candidate]) -> str | None:
    """What nobody has, and what the nearest one has; None: nobody can say."""
    if not candidates:
        return None
    nearest = min(candidates, key=_distance)
    # Something that the nearest one lacks another one may have.
    lacked = [each for each in nearest.misfits if each.wanted and _nobody_has(each, candidates)]
    if lacked:
        wanted, had = _listed([each.wanted for each in lacked]), _listed([each.had for each in lacked])
        return f"no tool has {wanted}; nearest: {nearest.id} has {had}"
    if not nearest.misfits[0].wanted:
        # A function says why not, and not how near it comes.
        return f"no tool can do it; {_listed([f'{each.id}: {each.misfits[0].had}' for each in candidates])}"
    had = _listed([f"{each.had} for {each.wanted}" for each in nearest.misfits])
    return f"no tool has all that is needed; nearest: {nearest.id} has {had}"


def _distance(candidate: _Candidate) -> tuple[int, int, float, str]:
    """How far it is from what is needed; something else in the place is nearer than nothing."""
    absent = sum(misfit.absent for misfit in candidate.misfits)
    gaps = sum(misfit.gap for misfit in candidate.misfits)
    return len(candidate.misfits), absent, gaps, candidate.id


def _nobody_has(lack: Misfit, candidates: Sequence[_Candidate]) -> bool:
    return all(any(misfit.implies(lack) for misfit in each.misfits) for each in candidates)


def _listed(texts: Sequence[str]) -> str:
    """Some texts as one: `a, b and 3 more`."""
    if len(texts) > _NAMED:
        texts = [*texts[: _NAMED - 1], f"{len(texts) - _NAMED + 1} more"]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def _clock(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment:%H:%MZ}" if moment.date() == datetime.now(UTC).date() else f"{moment:%Y-%m-%d %H:%MZ}"
