"""The strategy `contains`: the needs of a task are a part of the skills of a tool."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from msgspec.json import decode

from broker.matching.mismatch import Mismatch, Path, UnjudgeableError, gap, place, shown

# These steps take about 50 ms. Only needs and skills that were made to be slow need more.
_MOST_STEPS = 100_000
_MOST_MISMATCHES = 100


def contains(skills: Any, needs: Any) -> bool:
    """Return True if the skills of a tool contain the needs of a task.

    This is the default strategy of an `Assigner`. You can also use it in your own `match` function.

    - A dict contains another dict if it has all of its keys, and each of its values contains the other's
      value.
    - A list contains a value if one of its items contains the value. It contains another list if it contains
      each item of that list.
    - Any other value contains an equal value. As in JSON, `1` equals `1.0`, and `true` does not equal `1`.

    Example:
        contains({"can": ["print", "scan"], "floor": 2}, {"can": "scan"})  # True
        contains({"can": ["print", "scan"], "floor": 2}, {"can": "scan", "floor": 3})  # False

    Args:
        skills: The skills, as a Python value.
        needs: The needs, as a Python value.

    Raises:
        ValueError: The comparison would take too long, because both sides have long lists of dicts.
    """
    return Contains().matches(_prepared(skills), needs)


class Contains:
    """The strategy `contains`; see `Strategy` for the methods."""

    def needs(self, text: bytes) -> Any:
        """Decode needs."""
        return decode(text)

    def skills(self, text: bytes) -> Any:
        """Decode skills and prepare their lists for searching."""
        return _prepared(decode(text))

    def matches(self, skills: Any, needs: Any) -> bool:
        """Return whether prepared skills contain needs."""
        return _Comparison().meets(skills, needs)

    def mismatches(self, skills: Any, needs: Any) -> list[Mismatch]:
        """Return the mismatches between skills and needs, up to a hundred."""
        return list(islice(_Comparison().mismatches(skills, needs, ()), _MOST_MISMATCHES))


class _List:
    """A list in skills, prepared for searching.

    A set finds scalars at once. A comparison of each item with each need could take minutes.
    """

    def __init__(self, value: list[Any]) -> None:
        self.value = value
        self.scalars = {_key(item) for item in value if not isinstance(item, dict | list)}
        self.objects = [_prepared(item) for item in value if isinstance(item, dict)]
        self.lists = [_List(item) for item in value if isinstance(item, list)]


def _prepared(skills: Any) -> Any:
    if isinstance(skills, dict):
        return {key: _prepared(value) for key, value in skills.items()}
    return _List(skills) if isinstance(skills, list) else skills


def _key(scalar: Any) -> Any:
    """Return a key that only equal JSON scalars share. In Python, `True` equals 1."""
    return (scalar,) if isinstance(scalar, bool) else scalar


class _Comparison:
    """One comparison, with a limited number of steps."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def meets(self, skills: Any, needs: Any) -> bool:
        """Return whether skills contain needs."""
        self._step()
        if isinstance(skills, dict) and isinstance(needs, dict):
            for key, need in needs.items():
                if key not in skills or not self.meets(skills[key], need):
                    return False
            return True
        if isinstance(skills, _List):
            wanted = needs if isinstance(needs, list) else [needs]
            return all(self.has(skills, need) for need in wanted)
        return (
            not isinstance(skills, dict)
            and not isinstance(needs, dict | list)
            and _key(skills) == _key(needs)
        )

    def has(self, skills: _List, need: Any) -> bool:
        """Return whether one of the items contains a need."""
        if isinstance(need, dict):
            for item in skills.objects:
                if self.meets(item, need):
                    return True
        elif not isinstance(need, list) and _key(need) in skills.scalars:
            return True
        return any(self.meets(item, need) for item in skills.lists)

    def mismatches(self, skills: Any, needs: Any, path: Path) -> Iterator[Mismatch]:
        """Yield the mismatches between the skills at a path and the needs."""
        if isinstance(skills, dict) and isinstance(needs, dict):
            for key, need in needs.items():
                at = (*path, key)
                if key in skills:
                    yield from self.mismatches(skills[key], need, at)
                else:
                    yield Mismatch(wanted=_equals(at, need), had=f"no {place(at)}", path=at, absent=True)
        elif isinstance(skills, _List):
            for need in needs if isinstance(needs, list) else [needs]:
                if not self.has(skills, need):
                    yield Mismatch(wanted=_equals(path, need), had=shown(_unprepared(skills)), path=path)
        elif not self.meets(skills, needs):
            had = shown(_unprepared(skills))
            yield Mismatch(wanted=_equals(path, needs), had=had, path=path, gap=gap(needs, skills))

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnjudgeableError("the needs and the skills have too many objects in lists to compare")


def _equals(path: Path, need: Any) -> str:
    return f"{place(path)} = {shown(need)}" if path else shown(need)


def _unprepared(skills: Any) -> Any:
    """Return the skills as they were before their preparation, to show them to people."""
    if isinstance(skills, dict):
        return {key: _unprepared(value) for key, value in skills.items()}
    return skills.value if isinstance(skills, _List) else skills
