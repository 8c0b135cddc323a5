"""A round: decide which waiting task gets which free tool.

The round goes through the tasks in the order of urgency. Each task gets the matching tool with the highest
rank that has free capacity. If there is none, the round moves tasks that it placed earlier to other tools
that match them, along an augmenting path, until a place is free. A task that was placed stays placed.

Why that is optimal: the sets of tasks that can all have a tool at once are the independent sets of a
transversal matroid (Edmonds and Fulkerson, "Transversals and matroid partition", 1965), and in a matroid the
greedy algorithm is optimal for any weights. So no other choice gives more tasks a tool, and none gives a tool
to a more urgent task without taking it from one that is more urgent still. By Berge's theorem, a search for
an augmenting path that finds none proves that there is no way; Kuhn, and Hopcroft and Karp, use it for
matching. A search that fails closes the places that it has visited for the rest of the round: none of them
can become free.

All tasks with equal needs match the same tools. So the round places, moves and closes groups with counts. It
takes about one step for each placed task, one for each matching pair of needs and skills, and the searches.
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

# How many needs are judged before the first of them chooses, so that it knows what the others want.
_JUDGED_AHEAD = 1_000


class Pairing(NamedTuple):
    """A task and the tool that gets it."""

    task: QueuedTask
    tool: FreeTool


class Round:
    """One round. It removes the placed tasks from their queues, and changes nothing else."""

    def __init__(self, waiting: Iterable[Needs], free: dict[int, Skills], judge: Judge) -> None:
        self._free = dict(free)
        self._judge = judge
        self._all = sum(skills.bit for skills in free.values())
        self._waiting = [needs for needs in waiting if needs.matching & self._all or self._unjudged(needs)]
        self._askers: dict[Needs, _Asker] = {}
        self._places: dict[int, _Place] = {}
        self._room = sum(tool.room for skills in free.values() for tool in skills.tools.values())

    def steps(self) -> Iterator[None]:
        """Run the round, in steps that are each as long as one judgement."""
        for needs in islice(self._waiting, _JUDGED_AHEAD):
            yield from self._judged(needs)
        heads = [(head, needs) for needs in self._waiting if (head := needs.queue.head()) is not None]
        heapq.heapify(heads)
        while heads and self._room:
            needs = heads[0][1]
            if needs not in self._askers:
                yield from self._judged(needs)
                self._askers[needs] = _Asker(needs, self._matching(needs))
            asker = self._askers[needs]
            if not (self._place(asker) or self._reroute(asker)):
                heapq.heappop(heads)
                continue
            asker.tasks.append(needs.queue.pop())
            following = needs.queue.head()
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following, needs))

    def pairings(self) -> list[Pairing]:
        """Return the pairings in order of urgency; of equal tasks, the first get the highest-ranked tools."""
        seats = {place: iter(place.seats) for place in self._places.values()}
        pairings: list[Pairing] = []
        for asker in self._askers.values():
            tasks = iter(asker.tasks)
            for place in asker.places:
                placed = islice(tasks, place.held.get(asker, 0))
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

    def _place(self, asker: "_Asker") -> bool:
        """Give a task with these needs the best place with room; return whether there is one."""
        place = asker.choice()
        if place is None:
            return False
        place.take(asker)
        self._room -= 1
        return True

    def _reroute(self, start: "_Asker") -> bool:
        """Move other tasks to make room for a task with these needs; return whether that is possible.

        A breadth-first search: from the asker to the full places that match, to the askers that hold them,
        to other places that match those, until there is one with room.
        """
        asked_by: dict[_Place, _Asker] = {}
        holds: dict[_Asker, _Place | None] = {start: None}
        askers = deque([start])
        while askers:
            asker = askers.popleft()
            for place in asker.places:
                if place.closed or place in asked_by:
                    continue
                asked_by[place] = asker
                for holder in [each for each in place.held if each not in holds]:
                    holds[holder] = place
                    if self._place(holder):
                        self._move(holder, asked_by, holds)
                        return True
                    askers.append(holder)
        for place in asked_by:
            place.closed = True
        return False

    def _move(
        self, mover: "_Asker", asked_by: "dict[_Place, _Asker]", holds: "dict[_Asker, _Place | None]"
    ) -> None:
        """Hand over places along the path, from the asker that has one too many back to the start."""
        while (place := holds[mover]) is not None:
            following = asked_by[place]
            place.hand_over(mover, following)
            mover = following


class _Place:
    """The tools with equal skills, and who holds their free capacity in this round."""

    def __init__(self, skills: Skills) -> None:
        self.skills = skills
        #: The tools that were given out, one for each task.
        self.seats: list[FreeTool] = []
        #: Who holds them, and how many.
        self.held: dict[_Asker, int] = {}
        #: Whether nothing can become free here in this round.
        self.closed = False
        # The tool with the most free capacity first, and of equals the one that has waited longest.
        self._tools = [(-tool.room, tool.arrival, tool) for tool in skills.tools.values()]
        heapq.heapify(self._tools)

    @property
    def most_room(self) -> int:
        """The largest free capacity of a tool; 0: there is none."""
        return -self._tools[0][0] if self._tools else 0

    def take(self, asker: "_Asker") -> None:
        """Give an asker one unit of the free capacity."""
        less, arrival, tool = self._tools[0]
        self.seats.append(tool)
        self.held[asker] = self.held.get(asker, 0) + 1
        if less == -1:
            heapq.heappop(self._tools)
        else:
            heapq.heapreplace(self._tools, (less + 1, arrival, tool))

    def hand_over(self, one: "_Asker", other: "_Asker") -> None:
        """Give one unit that one asker holds to another."""
        self.held[one] -= 1
        if not self.held[one]:
            del self.held[one]
        self.held[other] = self.held.get(other, 0) + 1


class _Asker:
    """The tasks with equal needs, which look for places in this round."""

    def __init__(self, needs: Needs, places: list[_Place]) -> None:
        self.needs = needs
        #: The tasks that have a place.
        self.tasks: list[QueuedTask] = []
        self._choices = sorted((self._order(place), place) for place in places)
        #: The places that match, the highest rank first.
        self.places = [place for _, place in self._choices]

    def choice(self) -> _Place | None:
        """Return the best place with room: by rank, then by the fewest matching needs, then by most room."""
        while self._choices:
            order, place = self._choices[0]
            now = self._order(place)
            if not place.most_room:
                heapq.heappop(self._choices)
            elif now == order:
                return place
            else:
                # It has less room than before.
                heapq.heapreplace(self._choices, (now, place))
        return None

    def _order(self, place: _Place) -> tuple[float, int, int, int]:
        skills = place.skills
        return -self.needs.ranks.get(skills.index, 0.0), skills.wanted, -place.most_room, skills.index
