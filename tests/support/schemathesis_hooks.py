"""What schemathesis is told of the broker beyond the description, and a check of our own."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, GenerationMode, HookContext, Response

CONFIG = Path(__file__).with_name("schemathesis.toml")

# Enough to go the way of those who wait.
LONGEST_WAIT = 0.02


@schemathesis.hook
def before_load_schema(_: HookContext, document: dict[str, Any]) -> None:
    """The description as schemathesis understands it."""
    for operation in [each for item in document["paths"].values() for each in item.values()]:
        for parameter in operation.get("parameters", ()):
            # That a text is JSON it sees in this form only, which some makers of clients leave out.
            if parameter.get("schema", {}).get("contentMediaType") == "application/json":
                del parameter["schema"]
                parameter["content"] = {"application/json": {"schema": {}}}


@schemathesis.hook
def before_call(_: HookContext, case: Case, __: dict[str, Any]) -> None:
    """Let no request wait long, and give none a text that only an answer could have given."""
    query, body = case.query or {}, case.body
    if _is_long(query.get("wait")):
        query["wait"] = LONGEST_WAIT
    if isinstance(body, dict) and _is_long(body.get("next_wait_seconds")):
        body["next_wait_seconds"] = LONGEST_WAIT
    if case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE:
        query.pop("after", None)
        query.pop("cursor", None)
        if isinstance(body, dict):
            case.body = _with_whole_numbers(body)


@schemathesis.check
def only_codes_that_are_described(_: CheckContext, response: Response, case: Case) -> None:
    """A problem's code is one of those that the description names for its status."""
    document = case.operation.schema.raw_schema
    answers = case.operation.definition.raw["responses"]
    described = answers.get(str(response.status_code), {})
    if "$ref" in described:
        described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
    problem = described.get("content", {}).get("application/problem+json")
    if problem is not None and "problem" in response.headers["content-type"][0]:
        code = response.json()["code"]
        assert code in problem["examples"], f"{code} is not described, only {sorted(problem['examples'])}"


def for_schemathesis(document: dict[str, Any]) -> Any:
    """The description as schemathesis takes it, and changes it."""
    config = schemathesis.Config.from_path(CONFIG)
    return schemathesis.openapi.from_dict(deepcopy(document), config=config)


def _is_long(seconds: Any) -> bool:
    try:
        return LONGEST_WAIT < float(seconds) <= 60
    except (TypeError, ValueError):
        return False


def _with_whole_numbers(value: Any) -> Any:
    """With integers as everybody writes them: for a schema 3.0 is one, too, and the broker takes only 3."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
