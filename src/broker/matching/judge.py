"""The judge: whether kinds of skills meet kinds of needs, remembered for each pair of them."""

import logging
import math
from functools import lru_cache
from typing import Any

from msgspec.json import decode

from broker.matching.function import Rank
from broker.matching.kinds import Needs, Skills
from broker.matching.misfit import Misfit, MisfitError, UnjudgeableError, cut
from broker.matching.strategies import Strategy

log = logging.getLogger(__name__)

# So many kinds are kept ready to be judged, of needs and of skills.
_READY = 512
_LONGEST_TROUBLE = 200


class Judge:
    """Judges each pair of kinds once.

    What cannot be judged is no match; it is logged once for each kind, and holds up nothing else.

    Args:
        strategy: How.
        rank: How much those skills are preferred that match: `rank(skills, needs)`, more is better.
    """

    def __init__(self, strategy: Strategy, rank: Rank | None = None) -> None:
        self._strategy = strategy
        self._rank = rank
        self._needs = lru_cache(_READY)(strategy.needs)
        self._skills = lru_cache(_READY)(strategy.skills)

    def judge(self, needs: Needs, skills: Skills) -> bool:
        """Whether these skills meet these needs."""
        if not needs.judged & skills.bit:
            needs.judged |= skills.bit
            if self._fits(needs, skills):
                needs.matching |= skills.bit
                skills.wanted += 1
                skills.matched = True
        return bool(needs.matching & skills.bit)

    def misfits(self, needs: Needs, skills: Skills) -> list[Misfit]:
        """What these skills lack; nothing: nobody can say."""
        try:
            return self._strategy.misfits(self._skills(skills.text), self._needs(needs.text))
        except Exception:  # noqa: BLE001 - that it cannot be judged was told
            return []

    def _fits(self, needs: Needs, skills: Skills) -> bool:
        try:
            ready = self._skills(skills.text)
        except Exception as error:  # noqa: BLE001 - it is given whatever anybody registers
            if skills.trouble is None:
                skills.trouble = _told(error)
                log.warning(
                    "tool %s cannot be matched: %s", next(iter(skills.tools), "(away)"), skills.trouble
                )
            return False
        try:
            if not self._strategy.matches(ready, self._needs(needs.text)):
                return False
            if self._rank is not None:
                needs.ranks[skills.index] = _number(self._rank(decode(skills.text), decode(needs.text)))
        except MisfitError:
            return False
        except Exception as error:  # noqa: BLE001 - it is given whatever anybody submits
            if needs.trouble is None:
                needs.trouble = _told(error)
                _log(needs, skills)
            return False
        return True


def _log(needs: Needs, skills: Skills) -> None:
    head = needs.queue.head()
    task, tool = head.id if head else "(gone)", next(iter(skills.tools), "(away)")
    log.warning("task %s cannot be matched with tool %s: %s", task, tool, needs.trouble)


def _number(rank: Any) -> float:
    number = float(rank)
    if math.isnan(number):
        raise UnjudgeableError("its rank is no number")
    return number


def _told(error: Exception) -> str:
    return cut(str(error) if isinstance(error, UnjudgeableError) else repr(error), _LONGEST_TROUBLE)
