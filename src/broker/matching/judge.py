"""Decide whether skills meet needs, and remember the judgement for each pair."""

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

# The number of needs, and of skills, that stay prepared.
_MOST_PREPARED = 512
_LONGEST_TROUBLE = 200


class Judge:
    """Judges each pair of needs and skills once.

    Needs or skills that the strategy cannot judge match nothing. The judge logs the reason once for each.
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
        """Return the mismatches between skills and needs, or an empty list if the strategy names none."""
        try:
            return self._strategy.mismatches(self._skills(skills.text), self._needs(needs.text))
        except Exception:  # noqa: BLE001 - the judge has logged it before
            return []

    def _is_match(self, needs: Needs, skills: Skills) -> bool:
        try:
            prepared = self._skills(skills.text)
        except Exception as error:  # noqa: BLE001 - the skills can be any value
            if skills.trouble is None:
                skills.trouble = _described(error)
                tool = next(iter(skills.tools), "(unknown)")
                log.warning("the skills of tool %s could not be compared: %s", tool, skills.trouble)
            return False
        try:
            if not self._strategy.matches(prepared, self._needs(needs.text)):
                return False
            if self._rank is not None:
                needs.ranks[skills.index] = _number(self._rank(decode(skills.text), decode(needs.text)))
        except MismatchError:
            return False
        except Exception as error:  # noqa: BLE001 - the needs can be any value
            if needs.trouble is None:
                needs.trouble = _described(error)
                head = needs.queue.head()
                task, tool = head.id if head else "(unknown)", next(iter(skills.tools), "(unknown)")
                log.warning("task %s could not be compared with tool %s: %s", task, tool, needs.trouble)
            return False
        return True


def _number(rank: Any) -> float:
    number = float(rank)
    if math.isnan(number):
        raise UnjudgeableError("the rank is not a number")
    return number


def _described(error: Exception) -> str:
    return short_line(str(error) if isinstance(error, UnjudgeableError) else repr(error), _LONGEST_TROUBLE)
