"""A round: decide which waiting task gets which free tool.

The round goes through the tasks in the order of urgency. Each task gets the matching tool with the highest
rank that has free capacity. If there is none, the round moves earlier tasks to other tools that match them,
along an augmenting path, until a place is free. A placed task keeps a place for the rest of the round.

This is optimal for the following reason. The sets of tasks that can all have a tool at once are the
independent sets of a transversal matroid (Edmonds and Fulkerson, "Transversals and matroid partition", 1965).
In a matroid, the greedy algorithm is optimal for any weights. So no other choice gives more tasks a tool. And
no other choice gives a tool to a more urgent task, unless an even more urgent task loses its tool.

By Berge's theorem, a failed search for an augmenting path proves that no path exists. Kuhn's algorithm and
the Hopcroft-Karp algorithm use this for matching. A failed search closes the places that it has visited for
the rest of the round, because none of them can become free.

All tasks with equal needs match the same tools, so the round works with groups and counts. It needs about one
step for each placed task and one for each matching pair of needs and skills, besides the searches.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from broker.matching.judge import Judge
from broker.matching.needs import Needs, QueuedTask
from broker.matching.skills import FreeTool, Skills, indexes

# The number of needs to judge before the first of them gets tools. A choice depends on the other needs.
_JUDGED_AHEAD = 1_000


class Pairing(NamedTuple):
    """A task and its tool."""

    task: QueuedTask
    tool: FreeTool


class Round:
    """One round. It removes placed tasks from their queues and changes nothing else."""

    def __init__(self, waiting: Iterable[Needs], free: dict[int, Skills], judge: Judge) -> None:
        self._free = dict(free)
        self._judge = judge
        self._all = sum(skills.bit for skills in free.values())
        self._waiting = [needs for needs in waiting if needs.matching & self._all or self._unjudged(needs)]
        self._groups: dict[Needs, _Group] = {}
        self._places: dict[int, _Place] = {}
        self._room = sum(tool.room for skills in free.values() for tool in skills.tools.values())

    def steps(self) -> Iterator[None]:
        """Run the round. Yield after each judgement."""
        for needs in islice(self._waiting, _JUDGED_AHEAD):
            yield from self._judged(needs)
        heads = [(head, needs) for needs in self._waiting if (head := needs.queue.head()) is not None]
        heapq.heapify(heads)
        while heads and self._room:
            needs = heads[0][1]
            if needs not in self._groups:
                yield from self._judged(needs)
                self._groups[needs] = _Group(needs, self._matching(needs))
            group = self._groups[needs]
            if not (self._place(group) or self._reroute(group)):
                heapq.heappop(heads)
                continue
            group.tasks.append(needs.queue.pop())
            following = needs.queue.head()
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following, needs))

    def pairings(self) -> list[Pairing]:
        """Return the pairings in order of urgency. Among equal needs, earlier tasks get better tools."""
        seats = {place: iter(place.seats) for place in self._places.values()}
        pairings: list[Pairing] = []
        for group in self._groups.values():
            tasks = iter(group.tasks)
            for place in group.places:
                placed = islice(tasks, place.held.get(group, 0))
                pairings.extend(Pairing(task, next(seats[place])) for task in placed)
        return sorted(pairings, key=attrgetter("task"))

    def _unjudged(self, needs: Needs) -> int:
        return self._all & ~needs.judged

    def _judged(self, needs: Needs) -> Iterator[None]:
        for index in indexes(self._unjudged(needs)):
            self._judge.judge(needs, self._free[index])
            yield

    def _matching(self, needs: Needs) -> "list[_Place]":
        places = []
        for index in indexes(needs.matching & self._all):
            if index not in self._places:
                self._places[index] = _Place(self._free[index])
            places.append(self._places[index])
        return places

    def _place(self, group: "_Group") -> bool:
        """Give a task of a group the best free place. Return False if there is none."""
        place = group.choice()
        if place is None:
            return False
        place.give_to(group)
        self._room -= 1
        return True

    def _reroute(self, start: "_Group") -> bool:
        """Move other tasks to free a place for a task of a group. Return False if that is impossible.

        This is a breadth-first search. It goes from the group to the full places that match, then to the
        groups that hold these places, then to other places that match those groups, until one is free.
        """
        wanted_by: dict[_Place, _Group] = {}
        holds: dict[_Group, _Place | None] = {start: None}
        groups = deque([start])
        while groups:
            group = groups.popleft()
            for place in group.places:
                if place.closed or place in wanted_by:
                    continue
                wanted_by[place] = group
                for holder in [each for each in place.held if each not in holds]:
                    holds[holder] = place
                    if self._place(holder):
                        self._move(holder, wanted_by, holds)
                        return True
                    groups.append(holder)
        for place in wanted_by:
            place.closed = True
        return False

    def _move(
        self, mover: "_Group", wanted_by: "dict[_Place, _Group]", holds: "dict[_Group, _Place | None]"
    ) -> None:
        """Pass a place along the path, from the group that has one too many back to the start."""
        while (place := holds[mover]) is not None:
            following = wanted_by[place]
            place.hand_over(mover, following)
            mover = following


class _Place:
    """The tools with equal skills, and the groups that hold their free capacity in this round."""

    def __init__(self, skills: Skills) -> None:
        self.skills = skills
        #: The tools that have a task, once for each task.
        self.seats: list[FreeTool] = []
        #: The groups that hold seats, with the number of their seats.
        self.held: dict[_Group, int] = {}
        #: True if no seat can become free here in this round.
        self.closed = False
        # The tool with the most free capacity comes first, then the tool that has waited longest.
        self._tools = [(-tool.room, tool.arrival, tool) for tool in skills.tools.values()]
        heapq.heapify(self._tools)

    @property
    def most_room(self) -> int:
        """The largest free capacity of a tool, or 0 if there is none."""
        return -self._tools[0][0] if self._tools else 0

    def give_to(self, group: "_Group") -> None:
        """Give a group one unit of the free capacity."""
        less, arrival, tool = self._tools[0]
        self.seats.append(tool)
        self.held[group] = self.held.get(group, 0) + 1
        if less == -1:
            heapq.heappop(self._tools)
        else:
            heapq.heapreplace(self._tools, (less + 1, arrival, tool))

    def hand_over(self, giver: "_Group", receiver: "_Group") -> None:
        """Pass one unit from one group to another."""
        self.held[giver] -= 1
        if not self.held[giver]:
            del self.held[giver]
        self.held[receiver] = self.held.get(receiver, 0) + 1


class _Group:
    """The tasks with equal needs, which compete for places in this round."""

    def __init__(self, needs: Needs, places: list[_Place]) -> None:
        self.needs = needs
        #: The tasks that have a place.
        self.tasks: list[QueuedTask] = []
        self._choices = sorted((self._order(place), place) for place in places)
        #: The matching places, highest rank first.
        self.places = [place for _, place in self._choices]

    def choice(self) -> _Place | None:
        """Return the best free place, or None.

        Places compare by rank, then by the number of other needs that they match, then by free capacity.
        """
        while self._choices:
            order, place = self._choices[0]
            now = self._order(place)
            if not place.most_room:
                heapq.heappop(self._choices)
            elif now == order:
                return place
            else:
                # The place has less free capacity than before, so other places may now be better.
                heapq.heapreplace(self._choices, (now, place))
        return None

    def _order(self, place: _Place) -> tuple[float, int, int, int]:
        skills = place.skills
        return -self.needs.ranks.get(skills.index, 0.0), skills.wanted, -place.most_room, skills.index
