"""The judge: decide whether skills meet needs, and remember that for each pair."""

import logging
import math
from functools import lru_cache
from typing import Any

from msgspec.json import decode

from broker.matching.mismatch import Mismatch, MismatchError, UnjudgeableError, short_line
from broker.matching.needs import Needs
from broker.matching.skills import Skills
from broker.matching.strategies import Rank, Strategy

log = logging.getLogger(__name__)

# How many needs, and how many skills, are kept prepared.
_MOST_PREPARED = 512
_LONGEST_TROUBLE = 200


class Judge:
    """Judges each pair of needs and skills once.

    Needs or skills that cannot be judged match nothing. That is logged once for each of them.
    """

    def __init__(self, strategy: Strategy, rank: Rank | None = None) -> None:
        self._strategy = strategy
        self._rank = rank
        self._needs = lru_cache(_MOST_PREPARED)(strategy.needs)
        self._skills = lru_cache(_MOST_PREPARED)(strategy.skills)

    def judge(self, needs: Needs, skills: Skills) -> bool:
        """Return whether these skills meet these needs."""
        if not needs.judged & skills.bit:
            needs.judged |= skills.bit
            if self._is_match(needs, skills):
                needs.matching |= skills.bit
                skills.wanted += 1
                skills.matched = True
        return bool(needs.matching & skills.bit)

    def mismatches(self, needs: Needs, skills: Skills) -> list[Mismatch]:
        """Return what these skills lack; empty: unknown."""
        try:
            return self._strategy.mismatches(self._skills(skills.text), self._needs(needs.text))
        except Exception:  # noqa: BLE001 - it was logged when it was judged
            return []

    def _is_match(self, needs: Needs, skills: Skills) -> bool:
        try:
            prepared = self._skills(skills.text)
        except Exception as error:  # noqa: BLE001 - the skills may be anything
            if skills.trouble is None:
                skills.trouble = _described(error)
                log.warning(
                    "tool %s cannot be matched: %s", next(iter(skills.tools), "(away)"), skills.trouble
                )
            return False
        try:
            if not self._strategy.matches(prepared, self._needs(needs.text)):
                return False
            if self._rank is not None:
                needs.ranks[skills.index] = _number(self._rank(decode(skills.text), decode(needs.text)))
        except MismatchError:
            return False
        except Exception as error:  # noqa: BLE001 - the needs may be anything
            if needs.trouble is None:
                needs.trouble = _described(error)
                head = needs.queue.head()
                task, tool = head.id if head else "(gone)", next(iter(skills.tools), "(away)")
                log.warning("task %s cannot be matched with tool %s: %s", task, tool, needs.trouble)
            return False
        return True


def _number(rank: Any) -> float:
    number = float(rank)
    if math.isnan(number):
        raise UnjudgeableError("its rank is no number")
    return number


def _described(error: Exception) -> str:
    return short_line(str(error) if isinstance(error, UnjudgeableError) else repr(error), _LONGEST_TROUBLE)
