"""The description of the API: it is complete and true, and programs are made from it."""

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import msgspec
import pytest
import requests
from hypothesis import HealthCheck, settings
from schemathesis import Case, Response

from broker import errors, schemas
from broker.http.openapi import component_name
from broker.schemas.problems import Problem
from tests import ROOT
from tests.conftest import run_sql
from tests.support import api, description
from tests.support.api import Json, bearer
from tests.support.description import PROBLEM, nested_objects, operations, resolve
from tests.support.processes import clean_environment, serving, wait_until_ready
from tests.support.schemathesis_hooks import CONFIG, for_schemathesis
from tests.support.shared import TABLES, THOROUGH, shared_database

database = shared_database

KEY = "the-key-of-who-may-do-everything"
JSON = "application/json"
# What the name says already.
PLAIN_PARAMETERS = {"state", "outcome", "task_id", "tool_id"}
# No call that is described answers with these.
NO_CALLS_OWN = {"not_found", "method_not_allowed", "conflict", "internal"}
NO_CALLS_OWN |= {"malformed_request", "request_timeout", "headers_too_large"}


@pytest.fixture(scope="module")
def url(database: str) -> Iterator[str]:
    """A broker in a process of its own: who asks here is not asynchronous."""
    with serving(BROKER_DATABASE_URL=database, BROKER_ADMIN_KEY=KEY) as (_, url):
        asyncio.run(wait_until_ready(url))
        yield url


@pytest.fixture(scope="module")
def document() -> Json:
    """The description."""
    return description.make()


# It is complete


def test_it_is_valid_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    for_schemathesis(document).validate()
    for there in nested_objects(document["paths"]):
        resolve(document, there)


def test_it_is_the_same_in_every_process_and_no_more_than_140_kilobytes(url: str, document: Json) -> None:
    served = httpx.get(f"{url}/openapi.json").content
    assert served == msgspec.json.encode(document)
    assert len(served) < 140_000


def test_every_call_says_which_errors_it_may_answer_with(document: Json) -> None:
    for call in operations(document):
        expected = {"400"}
        if "requestBody" in call.described:
            expected |= {"413", "415"}
        if not call.path.startswith("/health/"):
            expected |= {"401", "403", "429", "503"}
        if re.search(r"\{(task|tool|work)_id\}", call.path):
            expected |= {"404"}
        assert expected <= call.described["responses"].keys(), str(call)
        assert any(status.startswith("2") for status in call.described["responses"]), str(call)


def test_every_error_is_a_problem_with_an_example_of_each_code(document: Json) -> None:
    codes = set()
    for call in operations(document):
        for status, answer in call.responses(document).items():
            if status < "400" or PROBLEM not in answer["content"]:
                continue
            content = answer["content"][PROBLEM]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in content["examples"].items():
                problem = msgspec.convert(resolve(document, example)["value"], Problem, strict=True)
                assert (problem.code, str(problem.status)) == (code, status)
                codes.add(code)
    assert codes == {error.code for error in every_error(errors.BrokerError)} - NO_CALLS_OWN


def every_error(root: type[errors.BrokerError]) -> Iterator[type[errors.BrokerError]]:
    yield root
    for error in root.__subclasses__():
        yield from every_error(error)


def test_who_has_to_wait_or_to_show_a_key_is_told_so_in_a_header(document: Json) -> None:
    named = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After"}
    for call in operations(document):
        for status, answer in call.responses(document).items():
            if status in named and call.path != "/health/ready":  # which says at once what it finds
                assert answer["headers"][named[status]]["required"], str(call)


def test_every_call_takes_a_key_but_those_for_health(document: Json) -> None:
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    for call in operations(document):
        expected = None if call.path.startswith("/health/") else [{"key": []}]
        assert call.described.get("security") == expected, str(call)


def test_every_body_has_an_example_that_is_just_such_a_thing(document: Json) -> None:
    modules = [import_module(f"broker.schemas.{module.name}") for module in iter_modules(schemas.__path__)]
    classes = (each for module in modules for each in vars(module).values() if isinstance(each, type))
    structs = {component_name(each): each for each in classes}
    for call in operations(document):
        for body in (call.described.get("requestBody", {}), *call.responses(document).values()):
            content = body.get("content", {}).get(JSON)
            if content is None:
                continue
            form = content["schema"]["$ref"].rpartition("/")[2]
            assert content["examples"], str(call)
            for there in content["examples"].values():
                example = resolve(document, there)["value"]
                thing = msgspec.json.decode(msgspec.json.encode(example), type=structs[form])
                assert json.loads(msgspec.json.encode(thing)).keys() >= example.keys(), form


def test_every_parameter_says_what_it_is(document: Json) -> None:
    for call in operations(document):
        for there in call.described.get("parameters", []):
            parameter = resolve(document, there)
            assert parameter.get("description") or parameter["name"] in PLAIN_PARAMETERS, str(call)
            assert parameter["schema"], str(call)
            if parameter["in"] == "path":
                assert parameter["schema"].keys() & {"pattern", "format"}, str(call)


def test_every_section_of_the_page_is_described(document: Json) -> None:
    used = {tag for call in operations(document) for tag in call.described["tags"]}
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}


# It is true


def test_every_answer_to_whatever_is_sent_is_one_that_is_described(url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIG, "--no-color", "run",
            f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEY}",
            "--phases", "examples,coverage,fuzzing", "--continue-on-failure",
            "--max-examples", "12" if THOROUGH else "3",
        ],
        env=clean_environment(PYTHONPATH=str(ROOT), SCHEMATHESIS_HOOKS="tests.support.schemathesis_hooks"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_who_follows_the_links_finds_only_what_is_described(url: str, database: str, document: Json) -> None:
    seen: Counter[tuple[str, int]] = Counter()

    class Client(for_schemathesis(document).as_state_machine()):
        def setup(self) -> None:
            asyncio.run(begin_anew(database, url))

        def get_call_kwargs(self, case: Case) -> Json:
            return {"base_url": url, "session": session, "headers": bearer(KEY)}

        def after_call(self, response: Response, case: Case) -> None:
            super().after_call(response, case)
            seen[case.operation.label, response.status_code] += 1

    with requests.Session() as session:
        Client.run(settings=SETTINGS)
    # Else nothing would have been looked at.
    assert seen["POST /v1/work", 201]


SETTINGS = settings(
    max_examples=60 if THOROUGH else 5,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


async def begin_anew(database: str, url: str) -> None:
    """A tool and two tasks, and nothing else: what is drawn depends on what is there."""
    await run_sql(database, *(f"delete from {table}" for table in TABLES))
    async with httpx.AsyncClient(base_url=url, headers=bearer(KEY)) as http:
        await api.add_tool(http, capacity=100)
        await api.add_tasks(http, "a", "b")


class Follower:
    """Who knows the description only: calls by their names, and what an answer's links say.

    Args:
        document: The description.
        http: A client of the broker.
    """

    def __init__(self, document: Json, http: httpx.Client) -> None:
        self._document = document
        self._http = http
        self._calls = {call.described["operationId"]: call for call in operations(document)}
        self.answer: Any = None
        self._links: Json = {}

    def call(self, name: str, body: Any = None, **parameters: str) -> Any:
        """What the broker answers, which has to be 2xx."""
        call = self._calls[name]
        in_path = {key: parameters.pop(key) for key in list(parameters) if f"{{{key}}}" in call.path}
        answer = self._http.request(
            call.method, call.path.format(**in_path), params=parameters or None, json=body
        )
        assert answer.is_success, answer.text
        self._links = call.responses(self._document)[str(answer.status_code)].get("links", {})
        self.answer = answer.json()
        return self.answer

    def follow(self, name: str, body: Any = None) -> Any:
        """Go where the last answer leads."""
        link = resolve(self._document, self._links[name])
        parameters = {key: str(self._value(each)) for key, each in link.get("parameters", {}).items()}
        given = {key: self._value(each) for key, each in link.get("requestBody", {}).items()}
        return self.call(link["operationId"], given or body, **parameters)

    def example(self, name: str) -> Any:
        """The body that the description shows for a call."""
        content = self._calls[name].described["requestBody"]["content"][JSON]
        [there] = content["examples"].values()
        return resolve(self._document, there)["value"]

    def _value(self, expression: str) -> Any:
        value = self.answer
        for step in expression.removeprefix("$response.body#/").split("/"):
            value = value[int(step)] if isinstance(value, list) else value[step]
        return value


async def test_links_and_examples_lead_through_a_whole_life(url: str, database: str, document: Json) -> None:
    await run_sql(database, *(f"delete from {table}" for table in TABLES))
    with httpx.Client(base_url=url, headers=bearer(KEY)) as http:
        client = Follower(document, http)
        for name in ("tools_register", "tasks_submit"):
            client.call(name, client.example(name))
        client.call("candidates_read")
        for name in ("work_assign", "work_start"):
            client.follow(name)
        work = client.answer
        client.call("work_report", client.example("work_report"), work_id=work["id"])
        client.call("work_read", work_id=work["id"])
        ending = client.example("work_complete") | {"next_wait_seconds": 0}
        record = client.follow("work_complete", ending)["archived"]
        assert client.follow("archive_read") == record
        assert (record["outcome"], record["result"]) == ("succeeded", ending["result"])


# Programs are made from it


@pytest.fixture(scope="module")
def made(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a package that was made from the description, and can be imported."""
    folder = tmp_path_factory.mktemp("made")
    # The generator knows lines of JSON, and events, as a text only.
    overrides = "content_type_overrides: {application/x-ndjson: text/plain, text/event-stream: text/plain}"
    (folder / "config.yml").write_text(f"post_hooks: []\n{overrides}\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{url}/openapi.json",
            "--meta", "none", "--output-path", folder / "made_client", "--config", folder / "config.yml",
            "--fail-on-warning",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield "made_client"
    sys.path.remove(str(folder))


def test_a_client_that_is_made_from_it_does_a_whole_piece_of_work(url: str, made: str) -> None:
    with importlib.import_module(made).AuthenticatedClient(url, token=KEY) as client:
        do_a_whole_piece_of_work(made, client)


def do_a_whole_piece_of_work(made: str, client: Any) -> None:
    """Every JSON value goes in and comes out as Python has it."""
    needs, payload = {"can": ["see", 1.5]}, ["any", None, {"json": True}]
    data, result = "half", {"seen": [1, 2]}
    models = importlib.import_module(f"{made}.models")

    def call(tag: str, name: str, *path: Any, **given: Any) -> Any:
        return importlib.import_module(f"{made}.api.{tag}.{name}").sync(*path, client=client, **given)

    tool = call("tools", "tools_register", body=models.NewTool(skills=needs, id="made"))
    assert (tool.skills, tool.state) == (needs, models.RegisteredToolState.IDLE)
    task = call("tasks", "tasks_submit", body=models.NewTask(needs=needs, payload=payload, priority=32_767))
    assert (task.needs, task.payload, task.state) == (needs, payload, models.TaskState.AVAILABLE)
    assert call("tasks", "tasks_explain", task.id).state == models.ExplanationState.AVAILABLE

    found = call("the_assigner", "candidates_read", wait=5)
    assert (task.id, tool.id) in [(each.id, other.id) for each in found.tasks for other in found.tools]
    call("the_assigner", "work_assign", body=models.Pair(task_id=task.id, tool_id=tool.id))

    [work] = call("tools", "tools_work", tool.id, wait=5).items
    assert (work.needs, work.payload) == (needs, payload)
    assert call("work", "work_start", work.id, body=models.Nothing()).state == models.WorkState.RUNNING
    told = call("work", "work_report", work.id, body=models.NewReport(progress=0.5, data=data))
    assert told.cancel_requested is False
    ending = models.Completion(outcome=models.CompletionOutcome.SUCCEEDED, result=result)
    record = call("work", "work_complete", work.id, body=ending).archived
    assert ([report.data for report in record.reports], record.result) == ([data], result)

    ended = call("tasks", "tasks_read", task.id)
    assert (ended.state, ended.result) == (models.TaskState.SUCCEEDED, result)
    assert call("archive", "archive_list", task_id=task.id).items == [record]
    refused = call("work", "work_start", work.id, body=models.Nothing())
    assert (refused.status, refused.code, refused.outcome) == (409, "work_ended", "succeeded")
