"""The real service, compared with a small model after each step.

Hypothesis chooses any steps in any order, for several tools and tasks: cancellations, forced deletions, tools
that die and return, late results. The test moves time instead of waiting. After every step, the service must
have the same state as the model.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

import asyncpg
import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.schemas.states import ChosenOutcome
from broker.settings import Settings
from broker.store import Store, due
from broker.store.address import libpq_url
from tests.conftest import running_broker, temporary_database
from tests.life_cycle.diagram import ARROWS, NOWHERE
from tests.life_cycle.model import ENDED, Model, Task, Tool, Work
from tests.support import steps
from tests.support.shared import THOROUGH

Result = TypeVar("Result")
Json = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

TABLES = ("work_reports", "work", "tasks", "tool_leases", "tools", "ended_tasks", "work_archive")
# Rules that do not hold here, because the model retries tasks and shrinks tools. It checks them itself.
MODELLED = {
    "a task counts the attempts in the archive",
    "no tool exceeds its capacity, unless it was resized",
}

MOST_TASKS = 3
TOOLS = ("t", "u")
CHANGES = ({"draining": True}, {"draining": False}, {"capacity": 1}, {"capacity": 3})
OUTCOMES = get_args(ChosenOutcome)
WORK_FIELDS = ("task_id", "tool_id", "state", "attempt", "cancel_requested")


class Thread:
    """A thread with an event loop, for asynchronous code: Hypothesis runs the steps synchronously."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Service:
    """The real service, with a way to move time in it."""

    thread: Thread
    http: httpx.Client
    sql: asyncpg.Connection
    store: Store

    async def empty(self) -> None:
        for table in TABLES:
            await self.sql.execute(f"delete from {table}")

    async def move(self, statement: str, id_: str, chore: due.Chore) -> None:
        """Move the time of one row, and run the upkeep that is then due."""
        await self.sql.execute(statement, id_)
        # The upkeep of the service runs at the same time and may handle the row first.
        while (seconds := await self.store.read(due.seconds_to_next, chore)) is not None and seconds <= 0:
            await self.store.run(chore.do, 100)


SERVICE = Service()


class Step(NamedTuple):
    """A kind of step.

    Args:
        weight: The relative frequency of the step.
        makes_sense: Returns whether the step makes sense now.
        run: Does the step.
    """

    weight: int
    makes_sense: Callable[[Model], object]
    run: Callable[["LifeCycle", Draw], None]


STEPS: list[Step] = []


def step(
    weight: int, when: Callable[[Model], object] = lambda _: True
) -> Callable[[Callable[["LifeCycle", Draw], None]], Callable[["LifeCycle", Draw], None]]:
    """Return a decorator that registers a method as a kind of step."""

    def mark(run: Callable[["LifeCycle", Draw], None]) -> Callable[["LifeCycle", Draw], None]:
        STEPS.append(Step(weight, when, run))
        return run

    return mark


def one_of(draw: Draw, items: Sequence[Any]) -> Any:
    return draw(st.sampled_from(list(items)))


def maybe(draw: Draw) -> bool:
    return bool(draw(st.booleans()))


class LifeCycle(RuleBasedStateMachine):
    """Any steps in any order. Steps that change something are more frequent than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.submitted = 0
        # The states of all tasks before the last step.
        self.states: dict[str, str] = {}
        SERVICE.thread.run(SERVICE.empty())
        for id_ in TOOLS:
            self.register(id_, resume=False, capacity=2)

    @rule(data=st.data())
    def take_a_step(self, data: st.DataObject) -> None:
        # Hypothesis prefers the first items, so the most useful steps come first.
        steps = sorted(STEPS, key=lambda kind: -kind.weight)
        kinds = [kind for kind in steps for _ in range(kind.weight) if kind.makes_sense(self.model)]
        data.draw(st.sampled_from(kinds)).run(self, data.draw)

    # Requests

    @step(2, lambda model: len(model.live()) < MOST_TASKS)
    def submit_another(self, draw: Draw) -> None:
        self.submitted += 1
        self.submit(draw, f"a{self.submitted}", 201)

    @step(1, lambda model: model.tasks)
    def submit_again(self, draw: Draw) -> None:
        self.submit(draw, one_of(draw, sorted(self.model.tasks)), 200)

    def submit(self, draw: Draw, id_: str, expected: int) -> None:
        backs_off, late, most = maybe(draw), one_of(draw, [False] * 3 + [True]), one_of(draw, [1, 2, 3])
        body = {
            "id": id_,
            "needs": {},
            "payload": id_,
            "max_attempts": most,
            "retry_backoff_seconds": 3600 if backs_off else 0,
            "timeout_seconds": 3600,
            "not_before": "2100-01-01T00:00:00Z" if late else None,
        }
        task = self.call("POST", "/v1/tasks", body, expected)
        if expected == 201:
            self.model.tasks[id_] = Task(most, backs_off, "scheduled" if late else "available")
        assert task["state"] == self.model.task_state(id_)

    @step(1)
    def register_again(self, draw: Draw) -> None:
        self.register(one_of(draw, TOOLS), resume=maybe(draw), capacity=one_of(draw, [1, 2]))

    def register(self, id_: str, *, resume: bool, capacity: int) -> None:
        body = {"id": id_, "skills": {}, "resume": resume, "capacity": capacity, "lease_seconds": 3600}
        self.call("POST", "/v1/tools", body, 200 if id_ in self.model.tools else 201)
        if not resume:
            for work in self.model.of_tool(id_):
                if self.model.work[work].state == "running":
                    self.model.end(work, "lost")
        self.model.tools[id_] = Tool(capacity)

    @step(1)
    def change(self, draw: Draw) -> None:
        id_, change = one_of(draw, TOOLS), one_of(draw, CHANGES)
        known = id_ in self.model.tools
        self.call("PATCH", f"/v1/tools/{id_}", change, 200 if known else "tool_not_found")
        if known:
            for name, value in change.items():
                setattr(self.model.tools[id_], name, value)

    @step(1)
    def delete_tool(self, draw: Draw) -> None:
        id_, force = one_of(draw, TOOLS), maybe(draw)
        expected: int | str = 204
        if id_ not in self.model.tools:
            expected = "tool_not_found"
        elif self.model.load(id_) and not force:
            expected = "tool_busy"
        self.call("DELETE", f"/v1/tools/{id_}?force={str(force).lower()}", None, expected)
        if expected == 204:
            for work in self.model.of_tool(id_):
                self.model.end(work, "lost")
            del self.model.tools[id_]

    @step(1)
    def heartbeat(self, draw: Draw) -> None:
        id_ = one_of(draw, TOOLS)
        known = id_ in self.model.tools
        heartbeat = self.call("POST", f"/v1/tools/{id_}/heartbeat", None, 200 if known else "tool_not_found")
        if known:
            self.model.tools[id_].offline = False
            cancelled = {work for work in self.model.of_tool(id_) if self.model.work[work].cancel}
            assert set(heartbeat["cancel"]) == cancelled

    @step(6, lambda model: model.available() and model.idle())
    def assign_available(self, draw: Draw) -> None:
        self.assign(one_of(draw, self.model.available()), one_of(draw, self.model.idle()))

    @step(1, lambda model: model.tasks)
    def assign_anything(self, draw: Draw) -> None:
        self.assign(one_of(draw, ["unknown", *sorted(self.model.tasks)]), one_of(draw, TOOLS))

    def assign(self, task: str, tool: str) -> None:
        expected: int | str = 201
        current = self.model.of_task(task)
        if task not in self.model.tasks:
            expected = "task_not_found"
        elif current and self.model.work[current].tool == tool:
            expected = 200
        elif self.model.tasks[task].state != "available":
            expected = "task_unavailable"
        elif tool not in self.model.tools:
            expected = "tool_not_found"
        elif self.model.tool_state(tool) != "idle":
            expected = "tool_unavailable"
        work = self.call("POST", "/v1/work", {"task_id": task, "tool_id": tool}, expected)
        if expected == 201:
            self.model.tasks[task].state = "assigned"
            self.model.work[work["id"]] = Work(task, tool, self.model.tasks[task].attempt + 1)
        elif expected == 200:
            assert work["id"] == current

    @step(3, lambda model: model.work)
    def start(self, draw: Draw) -> None:
        self.start_or_report(one_of(draw, sorted(self.model.work)), report=maybe(draw))

    @step(1, lambda model: model.archive)
    def start_ended_work(self, draw: Draw) -> None:
        self.start_or_report(one_of(draw, sorted(self.model.archive)), report=maybe(draw))

    def start_or_report(self, id_: str, *, report: bool) -> None:
        path, status = ("reports", 201) if report else ("start", 200)
        known = id_ in self.model.work
        response = self.call("POST", f"/v1/work/{id_}/{path}", {}, status if known else "work_ended")
        if not known:
            self.model.renew_lease(self.model.archive[id_].tool)
            return
        assert response["cancel_requested"] is self.model.work[id_].cancel
        self.model.work[id_].state = "running"

    @step(4, lambda model: model.work)
    def complete(self, draw: Draw) -> None:
        id_, outcome, retry = one_of(draw, sorted(self.model.work)), one_of(draw, OUTCOMES), maybe(draw)
        self.post_completion(id_, outcome, retry=retry, batch=maybe(draw))
        self.model.end(id_, outcome, retry=retry)

    @step(3, lambda model: model.archive)
    def complete_ended_work(self, draw: Draw) -> None:
        id_, outcome = one_of(draw, sorted(self.model.archive)), one_of(draw, OUTCOMES)
        batch, record = maybe(draw), self.model.archive[id_]
        same = outcome in (record.state, record.reported)
        self.post_completion(id_, outcome, retry=True, batch=batch)
        record.late = record.late or (outcome == "succeeded" and not same)
        self.model.renew_lease(record.tool)

    @step(3, lambda model: model.records_of_waiting_tasks(late=False))
    def succeed_too_late(self, draw: Draw) -> None:
        id_ = one_of(draw, self.model.records_of_waiting_tasks(late=False))
        self.post_completion(id_, "succeeded", retry=True, batch=False)
        self.model.archive[id_].late = True
        self.model.renew_lease(self.model.archive[id_].tool)

    def post_completion(self, id_: str, outcome: str, *, retry: bool, batch: bool) -> None:
        record = self.model.archive.get(id_)
        same = record is not None and outcome in (record.state, record.reported)
        body = {"outcome": outcome, "retry": retry, "result": outcome}
        if batch:
            items = {"items": [{"work_id": id_} | body]}
            [item] = self.call("POST", "/v1/work/complete", items, 200)["items"]
            assert item["status"] == ("archived" if record is None else "exists" if same else "work_ended")
        else:
            expected = 200 if record is None or same else "work_ended"
            self.call("POST", f"/v1/work/{id_}/complete", body, expected)

    @step(2, lambda model: model.work)
    def cancel(self, draw: Draw) -> None:
        id_, requeue = one_of(draw, sorted(self.model.work)), maybe(draw)
        self.call("POST", f"/v1/work/{id_}/cancel", {"requeue": requeue}, 202)
        work = self.model.work[id_]
        work.requeue = requeue and (work.requeue or not work.cancel)
        work.cancel = True

    @step(1, lambda model: model.archive)
    def cancel_ended_work(self, draw: Draw) -> None:
        self.call("POST", f"/v1/work/{one_of(draw, sorted(self.model.archive))}/cancel", None, "work_ended")

    @step(1, lambda model: model.tasks)
    def delete_task(self, draw: Draw) -> None:
        id_, force = one_of(draw, ["unknown", *sorted(self.model.tasks)]), maybe(draw)
        work_id = self.model.of_task(id_)
        work = self.model.work[work_id] if work_id else None
        task = self.model.tasks.get(id_)
        expected: int | str = 204
        if task is None:
            expected = "task_not_found"
        elif work and work.state == "running" and not force:
            expected = 202
        self.call("DELETE", f"/v1/tasks/{id_}?force={str(force).lower()}", None, expected)
        if work and work_id:
            work.cancel, work.requeue = True, False
            if expected == 204:
                self.model.end(work_id, "cancelled")
        elif task and task.state not in ENDED:
            task.state = "cancelled"
            self.model.deleted += 1

    @step(1, lambda model: model.tasks)
    def retry_anything(self, draw: Draw) -> None:
        self.retry(one_of(draw, ["unknown", *sorted(self.model.tasks)]))

    @step(2, lambda model: model.in_state("failed"))
    def retry_failed(self, draw: Draw) -> None:
        self.retry(one_of(draw, self.model.in_state("failed")))

    def retry(self, id_: str) -> None:
        task = self.model.tasks.get(id_)
        expected: int | str = 200
        if task is None:
            expected = "task_not_found"
        elif task.state in ENDED:
            expected = "task_ended"
        self.call("POST", f"/v1/tasks/{id_}/retry", None, expected)
        if task and task.state == "failed":
            task.state, task.attempt = "available", 0

    @step(1, lambda model: model.archive)
    def accept_anything(self, draw: Draw) -> None:
        self.accept(one_of(draw, sorted(self.model.archive)))

    @step(3, lambda model: model.records_of_waiting_tasks(late=True))
    def accept_late_result(self, draw: Draw) -> None:
        self.accept(one_of(draw, self.model.records_of_waiting_tasks(late=True)))

    def accept(self, id_: str) -> None:
        record = self.model.archive[id_]
        task = self.model.tasks[record.task]
        expected: int | str = 200
        if not record.late:
            expected = "nothing_to_accept"
        elif record.state != "succeeded" and task.state not in ("available", "scheduled", "failed"):
            expected = "task_unavailable"
        self.call("POST", f"/v1/archive/{id_}/accept", None, expected)
        if expected == 200:
            record.state, record.reported = "succeeded", None
            task.state = "succeeded"

    # Time

    @step(1, lambda model: model.tools)
    def let_a_lease_expire(self, draw: Draw) -> None:
        id_ = one_of(draw, sorted(self.model.tools))
        self.move("update tool_leases set expires_at = now() where tool_id = $1", id_, due.LEASES)
        for work in self.model.of_tool(id_):
            self.model.end(work, "lost")
        self.model.tools[id_].offline = True

    @step(2, lambda model: model.work)
    def let_a_deadline_pass(self, draw: Draw) -> None:
        id_ = one_of(draw, sorted(self.model.work))
        self.move("update work set deadline_at = now() where id = $1", id_, due.WORK)
        self.model.end(id_, "lost" if self.model.work[id_].state == "assigned" else "timed_out")

    @step(2, lambda model: model.in_state("scheduled"))
    def let_a_task_become_due(self, draw: Draw) -> None:
        id_ = one_of(draw, self.model.in_state("scheduled"))
        self.move("update tasks set due_at = now() where id = $1", id_, due.TASKS)
        self.model.tasks[id_].state = "available"

    # Invariants

    @invariant()
    def service_agrees_with_the_model(self) -> None:
        model = self.model
        tasks = {item["id"]: (item["state"], item["attempt"]) for item in self.items("/v1/tasks")}
        assert tasks == {id_: (model.task_state(id_), model.tasks[id_].attempt) for id_ in model.live()}
        tools = {item["id"]: (item["state"], item["load"]) for item in self.items("/v1/tools")}
        assert tools == {id_: (model.tool_state(id_), model.load(id_)) for id_ in model.tools}
        work = {item["id"]: tuple(item[name] for name in WORK_FIELDS) for item in self.items("/v1/work")}
        assert work == {
            id_: (work.task, work.tool, work.state, work.attempt, work.cancel)
            for id_, work in model.work.items()
        }
        self.check_archive()
        self.check_transitions()

    def check_transitions(self) -> None:
        """Check that all tasks follow the arrows of the diagram."""
        before, self.states = self.states, {id_: self.model.task_state(id_) for id_ in self.model.tasks}
        transitions = {
            (before.get(id_, NOWHERE), state)
            for id_, state in self.states.items()
            if before.get(id_) != state
        }
        assert transitions <= ARROWS

    def check_archive(self) -> None:
        """Check that the archive has exactly the records of the model."""
        records = {item["work_id"]: item for item in self.items("/v1/archive")}
        alone = [id_ for id_, record in records.items() if record["tool_id"] is None]
        assert len(alone) == self.model.deleted
        assert records.keys() - set(alone) == self.model.archive.keys()
        for id_, record in self.model.archive.items():
            actual = records[id_]
            fields = (actual["task_id"], actual["tool_id"], actual["attempt"], actual["outcome"])
            assert fields == (record.task, record.tool, record.attempt, record.state)
            assert (actual["late"] is not None) == record.late
            assert actual["task"]["payload"] == record.task

    def teardown(self) -> None:
        """Check that ended tasks can be read, and that every rule of the database holds."""
        for id_, task in self.model.tasks.items():
            actual = self.call("GET", f"/v1/tasks/{id_}", None, 200)
            assert actual["state"] == self.model.task_state(id_)
            assert task.state != "succeeded" or actual["result"] == "succeeded"
        SERVICE.thread.run(steps.check_invariants(SERVICE.sql, but=MODELLED))

    # Helpers

    def call(self, method: str, path: str, body: Json | None, expected: int | str) -> Json:
        """Send a request, check the status or the error code of the response, and return its body."""
        response = SERVICE.http.request(method, path, json=body)
        content = response.json() if response.content else {}
        actual = content.get("code") if response.is_error else response.status_code
        assert actual == expected, f"{method} {path}: {response.status_code} {response.text}"
        return content

    def items(self, path: str) -> list[Json]:
        items: list[Json] = self.call("GET", f"{path}?limit=1000", None, 200)["items"]
        return items

    def move(self, statement: str, id_: str, chore: due.Chore) -> None:
        SERVICE.thread.run(SERVICE.move(statement, id_, chore))


@pytest.fixture(scope="module")
def service(postgres: str, template: str) -> Iterator[None]:
    """Run the service for all examples."""
    SERVICE.thread = Thread()
    running = running_service(postgres, template)
    SERVICE.thread.run(anext(running))
    yield
    SERVICE.thread.run(anext(running, None))
    SERVICE.thread.stop()


async def running_service(postgres: str, template: str) -> AsyncIterator[None]:
    async with (
        temporary_database(postgres, template) as url,
        running_broker(Settings(database_url=url)) as broker,
    ):
        SERVICE.sql = await asyncpg.connect(libpq_url(url))
        SERVICE.store = Store(url)
        SERVICE.http = httpx.Client(base_url=broker.url)
        yield
        SERVICE.http.close()
        await SERVICE.store.close()
        await SERVICE.sql.close()


@pytest.mark.usefixtures("service")
class TestLifeCycle(LifeCycle.TestCase):
    settings = settings(
        max_examples=60 if THOROUGH else 12,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
