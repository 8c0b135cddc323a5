"""The OpenAPI document is complete and correct, and tools can generate clients from it."""

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

KEY = "an-admin-key-of-the-settings"
JSON = "application/json"
# The document lists these codes only in its introduction.
COMMON_CODES = {"not_found", "method_not_allowed", "conflict", "internal"}
COMMON_CODES |= {"malformed_request", "request_timeout", "headers_too_large"}


@pytest.fixture(scope="module")
def url(database: str) -> Iterator[str]:
    """Run a broker in another process, because the clients in this module are synchronous."""
    with serving(BROKER_DATABASE_URL=database, BROKER_ADMIN_KEY=KEY) as (_, url):
        asyncio.run(wait_until_ready(url))
        yield url


@pytest.fixture(scope="module")
def document() -> Json:
    """Return the OpenAPI document."""
    return description.make()


# The document is complete


def test_document_is_valid_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    for_schemathesis(document).validate()
    for value in nested_objects(document["paths"]):
        resolve(document, value)


def test_document_is_the_same_in_every_process_and_below_180_kilobytes(url: str, document: Json) -> None:
    served = httpx.get(f"{url}/openapi.json").content
    assert served == msgspec.json.encode(document)
    assert len(served) < 180_000


def test_every_operation_lists_the_errors_that_it_may_return(document: Json) -> None:
    for operation in operations(document):
        expected = {"400"}
        if "requestBody" in operation.described:
            expected |= {"413", "415"}
        if not operation.path.startswith("/health/"):
            expected |= {"401", "403", "429", "503"}
        if re.search(r"\{(task|tool|work)_id\}", operation.path):
            expected |= {"404"}
        assert expected <= operation.described["responses"].keys(), str(operation)
        assert any(status.startswith("2") for status in operation.described["responses"]), str(operation)


def test_every_error_response_has_an_example_of_each_code(document: Json) -> None:
    codes = set()
    for operation in operations(document):
        for status, response in operation.responses(document).items():
            if status < "400" or PROBLEM not in response["content"]:
                continue
            content = response["content"][PROBLEM]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code, example in content["examples"].items():
                problem = msgspec.convert(resolve(document, example)["value"], Problem, strict=True)
                assert (problem.code, str(problem.status)) == (code, status)
                codes.add(code)
    assert codes == {error.code for error in every_error(errors.BrokerError)} - COMMON_CODES


def every_error(root: type[errors.BrokerError]) -> Iterator[type[errors.BrokerError]]:
    """Yield a class of errors and all of its subclasses."""
    yield root
    for error in root.__subclasses__():
        yield from every_error(error)


def test_errors_that_ask_to_wait_or_to_authenticate_have_the_required_header(document: Json) -> None:
    required = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After"}
    for operation in operations(document):
        for status, response in operation.responses(document).items():
            if status in required and operation.path != "/health/ready":
                assert response["headers"][required[status]]["required"], str(operation)


def test_every_operation_except_health_checks_requires_a_key(document: Json) -> None:
    assert document["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    for operation in operations(document):
        expected = None if operation.path.startswith("/health/") else [{"key": []}]
        assert operation.described.get("security") == expected, str(operation)


def test_every_body_has_an_example_of_its_type(document: Json) -> None:
    modules = [import_module(f"broker.schemas.{module.name}") for module in iter_modules(schemas.__path__)]
    classes = (each for module in modules for each in vars(module).values() if isinstance(each, type))
    structs = {component_name(each): each for each in classes}
    for operation in operations(document):
        for body in (operation.described.get("requestBody", {}), *operation.responses(document).values()):
            content = body.get("content", {}).get(JSON)
            if content is None:
                continue
            name = content["schema"]["$ref"].rpartition("/")[2]
            assert content["examples"], str(operation)
            for reference in content["examples"].values():
                example = resolve(document, reference)["value"]
                body_value = msgspec.json.decode(msgspec.json.encode(example), type=structs[name])
                assert json.loads(msgspec.json.encode(body_value)).keys() >= example.keys(), name


def test_every_parameter_and_every_field_has_a_description(document: Json) -> None:
    for operation in operations(document):
        for reference in operation.described.get("parameters", []):
            parameter = resolve(document, reference)
            assert parameter["description"], str(operation)
            assert parameter["schema"], str(operation)
            if parameter["in"] == "path":
                assert parameter["schema"].keys() & {"pattern", "format"}, str(operation)
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, field_schema in schema["properties"].items():
            assert field_schema.get("description"), f"{name}.{field}"


def test_every_tag_has_a_description(document: Json) -> None:
    used = {tag for operation in operations(document) for tag in operation.described["tags"]}
    assert used == {tag["name"] for tag in document["tags"] if tag["description"]}


# The document is correct


def test_responses_to_generated_requests_match_the_document(url: str, tmp_path: Path) -> None:
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


def test_responses_along_the_links_match_the_document(url: str, database: str, document: Json) -> None:
    seen: Counter[tuple[str, int]] = Counter()

    class Client(for_schemathesis(document).as_state_machine()):
        def setup(self) -> None:
            asyncio.run(reset_broker(database, url))

        def get_call_kwargs(self, case: Case) -> Json:
            return {"base_url": url, "session": session, "headers": bearer(KEY)}

        def after_call(self, response: Response, case: Case) -> None:
            super().after_call(response, case)
            seen[case.operation.label, response.status_code] += 1

    with requests.Session() as session:
        Client.run(settings=SETTINGS)
    # At least one sequence of requests must have reached an assignment.
    assert seen["POST /v1/work", 201]


SETTINGS = settings(
    max_examples=60 if THOROUGH else 5,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


async def reset_broker(database: str, url: str) -> None:
    """Leave one tool and two tasks in the broker. The generated requests depend on its contents."""
    await run_sql(database, *(f"delete from {table}" for table in TABLES))
    async with httpx.AsyncClient(base_url=url, headers=bearer(KEY)) as http:
        await api.add_tool(http, capacity=100)
        await api.add_tasks(http, "a", "b")


class LinkFollower:
    """A client that knows only the document: it uses the names of operations and the links of responses.

    Args:
        document: The OpenAPI document.
        http: An HTTP client of the broker.
    """

    def __init__(self, document: Json, http: httpx.Client) -> None:
        self._document = document
        self._http = http
        self._operations = {each.described["operationId"]: each for each in operations(document)}
        self.response: Any = None
        self._links: Json = {}

    def call(self, name: str, body: Any = None, **parameters: str) -> Any:
        """Make a request that succeeds, and return its response."""
        operation = self._operations[name]
        in_path = {key: parameters.pop(key) for key in list(parameters) if f"{{{key}}}" in operation.path}
        response = self._http.request(
            operation.method, operation.path.format(**in_path), params=parameters or None, json=body
        )
        assert response.is_success, response.text
        self._links = operation.responses(self._document)[str(response.status_code)].get("links", {})
        self.response = response.json()
        return self.response

    def follow(self, name: str, body: Any = None) -> Any:
        """Follow a link of the last response."""
        link = resolve(self._document, self._links[name])
        parameters = {key: str(self._value(each)) for key, each in link.get("parameters", {}).items()}
        fields = {key: self._value(each) for key, each in link.get("requestBody", {}).items()}
        return self.call(link["operationId"], fields or body, **parameters)

    def example(self, name: str) -> Any:
        """Return the example body of an operation."""
        content = self._operations[name].described["requestBody"]["content"][JSON]
        [reference] = content["examples"].values()
        return resolve(self._document, reference)["value"]

    def _value(self, expression: str) -> Any:
        value = self.response
        for step in expression.removeprefix("$response.body#/").split("/"):
            value = value[int(step)] if isinstance(value, list) else value[step]
        return value


async def test_links_and_examples_lead_through_a_whole_life_cycle(
    url: str, database: str, document: Json
) -> None:
    await run_sql(database, *(f"delete from {table}" for table in TABLES))
    with httpx.Client(base_url=url, headers=bearer(KEY)) as http:
        client = LinkFollower(document, http)
        for name in ("tools_register", "tasks_submit"):
            client.call(name, client.example(name))
        client.call("candidates_read")
        for name in ("work_assign", "work_start"):
            client.follow(name)
        work = client.response
        client.call("work_report", client.example("work_report"), work_id=work["id"])
        client.call("work_read", work_id=work["id"])
        ending = client.example("work_complete") | {"next_wait_seconds": 0}
        record = client.follow("work_complete", ending)["archived"]
        assert client.follow("archive_read") == record
        assert (record["outcome"], record["result"]) == ("succeeded", ending["result"])


# Generated clients


@pytest.fixture(scope="module")
def generated(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Generate a client package from the document, and yield its name."""
    folder = tmp_path_factory.mktemp("generated")
    # The generator supports JSON lines and events only as text.
    overrides = "content_type_overrides: {application/x-ndjson: text/plain, text/event-stream: text/plain}"
    (folder / "config.yml").write_text(f"post_hooks: []\n{overrides}\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{url}/openapi.json",
            "--meta", "none", "--output-path", folder / "generated_client", "--config", folder / "config.yml",
            "--fail-on-warning",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield "generated_client"
    sys.path.remove(str(folder))


def test_generated_client_does_a_whole_life_cycle(url: str, generated: str) -> None:
    with importlib.import_module(generated).AuthenticatedClient(url, token=KEY) as client:
        run_a_whole_life_cycle(generated, client)


def run_a_whole_life_cycle(generated: str, client: Any) -> None:
    """Use the generated client from registration to completion. JSON values stay equal."""
    needs, payload = {"can": ["see", 1.5]}, ["any", None, {"json": True}]
    data, result = "half", {"seen": [1, 2]}
    models = importlib.import_module(f"{generated}.models")

    def call(tag: str, name: str, *path: Any, **arguments: Any) -> Any:
        return importlib.import_module(f"{generated}.api.{tag}.{name}").sync(
            *path, client=client, **arguments
        )

    tool = call("tools", "tools_register", body=models.NewTool(skills=needs, id="generated"))
    assert (tool.skills, tool.state) == (needs, models.RegisteredToolState.IDLE)
    task = call("tasks", "tasks_submit", body=models.NewTask(needs=needs, payload=payload, priority=32_767))
    assert (task.needs, task.payload, task.state) == (needs, payload, models.TaskState.AVAILABLE)
    assert call("tasks", "tasks_explain", task.id).state == models.ExplanationState.AVAILABLE

    candidates = call("the_assigner", "candidates_read", wait=5)
    assert (task.id, tool.id) in [
        (each.id, other.id) for each in candidates.tasks for other in candidates.tools
    ]
    call("the_assigner", "work_assign", body=models.Pair(task_id=task.id, tool_id=tool.id))

    [work] = call("tools", "tools_work", tool.id, wait=5).items
    assert (work.needs, work.payload) == (needs, payload)
    assert call("work", "work_start", work.id, body=models.Nothing()).state == models.WorkState.RUNNING
    report = call("work", "work_report", work.id, body=models.NewReport(progress=0.5, data=data))
    assert report.cancel_requested is False
    ending = models.Completion(outcome=models.CompletionOutcome.SUCCEEDED, result=result)
    record = call("work", "work_complete", work.id, body=ending).archived
    assert ([each.data for each in record.reports], record.result) == ([data], result)

    ended = call("tasks", "tasks_read", task.id)
    assert (ended.state, ended.result) == (models.TaskState.SUCCEEDED, result)
    assert call("archive", "archive_list", task_id=task.id).items == [record]
    refused = call("work", "work_start", work.id, body=models.Nothing())
    assert (refused.status, refused.code, refused.outcome) == (409, "work_ended", "succeeded")
