"""A round: the tasks that wait, the tools that have room, and who gets whom.

The tasks are gone through in the order of the offer, and each takes the tool that it ranks highest of those
that match and have room. Where there is none, tasks that were placed earlier in the round are moved from one
tool to another that matches them as well, along an augmenting path, until a place comes free for this one.
A task that was placed stays placed.

Why that is best: the sets of tasks that can all have a tool at once are the independent sets of a transversal
matroid (Edmonds and Fulkerson, "Transversals and matroid partition", 1965), and in a matroid the greedy way
is the best one, for whatever weights. So no other choice gives more tasks a tool, and none gives one to a
more urgent task without taking it from one that is more urgent still. That a search for an augmenting path
which finds none shows that there is no way is Berge's theorem, used for pairing as by Kuhn, and by Hopcroft
and Karp. The places that such a search has looked at are closed for the rest of the round: nothing will come
free there any more.

All tasks of a kind match the same tools, so it is kinds that are placed, moved and closed, with counts. The
effort is about one step for each task that is placed, one for each pair of kinds that match, and the
searches.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from broker.matching.judge import Judge
from broker.matching.kinds import KnownTool, Needs, Skills, indexes
from broker.matching.queue import WaitingTask

# So many kinds of needs are judged before the first of them chooses, so that it knows what the others want.
_JUDGED_AHEAD = 1_000


class Pairing(NamedTuple):
    """A task, and the tool that shall do it."""

    task: WaitingTask
    tool: KnownTool


class Round:
    """One round. Tasks that are placed are taken out of their queues; nothing else is changed.

    Args:
        waiting: The kinds of needs with which tasks wait.
        free: The kinds of skills whose tools have room, by their indexes.
        judge: Knows who matches.
    """

    def __init__(self, waiting: Iterable[Needs], free: dict[int, Skills], judge: Judge) -> None:
        self._free = dict(free)
        self._judge = judge
        self._all = sum(skills.bit for skills in free.values())
        self._waiting = [needs for needs in waiting if needs.matching & self._all or self._unjudged(needs)]
        self._askers: dict[Needs, _Asker] = {}
        self._places: dict[int, _Place] = {}
        self._room = sum(tool.room for skills in free.values() for tool in skills.tools.values())

    def steps(self) -> Iterator[None]:
        """Go through the round; a step is as long as a judgement, and others may do something between."""
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
        """Who got whom, in the order of the offer; of equal tasks, the first get what they rank highest."""
        seats = {place: iter(place.seats) for place in self._places.values()}
        found: list[Pairing] = []
        for asker in self._askers.values():
            tasks = iter(asker.tasks)
            for place in asker.places:
                some = islice(tasks, place.held.get(asker, 0))
                found.extend(Pairing(task, next(seats[place])) for task in some)
        return sorted(found, key=attrgetter("task"))

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
        """Give a task of this kind the best place that has room; whether there is one."""
        place = asker.choice()
        if place is None:
            return False
        self._take(place, asker)
        return True

    def _take(self, place: "_Place", asker: "_Asker") -> None:
        place.take(asker)
        self._room -= 1

    def _reroute(self, start: "_Asker") -> bool:
        """Move others so that there is room for a task of this kind; whether that can be.

        A search in breadth, from who looks for a place, to the full places that match, to who holds them, to
        other places that match those, until there is one with room.
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
                    if (end := holder.choice()) is not None:
                        self._take(end, holder)
                        self._move(holder, asked_by, holds)
                        return True
                    askers.append(holder)
        for place in asked_by:
            place.closed = True
        return False

    def _move(
        self, mover: "_Asker", asked_by: "dict[_Place, _Asker]", holds: "dict[_Asker, _Place | None]"
    ) -> None:
        """Let everybody on the way to this one, who has a place more than it needs, have the next one's."""
        while (place := holds[mover]) is not None:
            following = asked_by[place]
            place.hand_over(mover, following)
            mover = following


class _Place:
    """The tools of a kind of skills, and who holds their room in this round.

    Args:
        skills: The kind.
    """

    def __init__(self, skills: Skills) -> None:
        self.skills = skills
        #: The tools that were taken, one for each task.
        self.seats: list[KnownTool] = []
        #: How many tasks of which kinds hold these.
        self.held: dict[_Asker, int] = {}
        #: Whether no room can be made here any more.
        self.closed = False
        # The one with the most room first, and of equals the one that has waited longest.
        self._tools = [(-tool.room, tool.heard, tool) for tool in skills.tools.values()]
        heapq.heapify(self._tools)

    @property
    def most_room(self) -> int:
        """The most room that a tool has; 0: there is none."""
        return -self._tools[0][0] if self._tools else 0

    def take(self, asker: "_Asker") -> None:
        """Have it hold some of the room."""
        less, heard, tool = self._tools[0]
        self.seats.append(tool)
        self.held[asker] = self.held.get(asker, 0) + 1
        if less == -1:
            heapq.heappop(self._tools)
        else:
            heapq.heapreplace(self._tools, (less + 1, heard, tool))

    def hand_over(self, one: "_Asker", other: "_Asker") -> None:
        """Have the other hold what the one did."""
        self.held[one] -= 1
        if not self.held[one]:
            del self.held[one]
        self.held[other] = self.held.get(other, 0) + 1


class _Asker:
    """The tasks of a kind of needs, which look for places in this round.

    Args:
        needs: The kind.
        places: Those that match.
    """

    def __init__(self, needs: Needs, places: list[_Place]) -> None:
        self.needs = needs
        #: Those that have got one.
        self.tasks: list[WaitingTask] = []
        self._choices = sorted((self._order(place), place) for place in places)
        #: Those that match, the one that is ranked highest first.
        self.places = [place for _, place in self._choices]

    def choice(self) -> _Place | None:
        """The best place with room: ranked highest, or else wanted by the fewest, or else with the most."""
        while self._choices:
            order, place = self._choices[0]
            now = self._order(place)
            if not place.most_room:
                heapq.heappop(self._choices)
            elif now == order:
                return place
            else:
                # Since then it has less room.
                heapq.heapreplace(self._choices, (now, place))
        return None

    def _order(self, place: _Place) -> tuple[float, int, int, int]:
        skills = place.skills
        return -self.needs.ranks.get(skills.index, 0.0), skills.wanted, -place.most_room, skills.index
