"""Hooks that adapt schemathesis to the broker, and an additional check."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, GenerationMode, HookContext, Response

CONFIG = Path(__file__).with_name("schemathesis.toml")

# In seconds. Long enough to make the request a long poll.
LONGEST_WAIT = 0.02


@schemathesis.hook
def before_load_schema(_: HookContext, document: dict[str, Any]) -> None:
    """Rewrite JSON parameters in the form that schemathesis understands."""
    for operation in [each for item in document["paths"].values() for each in item.values()]:
        for parameter in operation.get("parameters", ()):
            # Schemathesis recognizes a JSON parameter only in this form, which some client generators ignore.
            if parameter.get("schema", {}).get("contentMediaType") == "application/json":
                del parameter["schema"]
                parameter["content"] = {"application/json": {"schema": {}}}


@schemathesis.hook
def before_call(_: HookContext, case: Case, __: dict[str, Any]) -> None:
    """Shorten long polls, and remove cursors, which are valid only if they come from a response."""
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
    """Check that the description lists the code of a problem for its status."""
    document = case.operation.schema.raw_schema
    responses = case.operation.definition.raw["responses"]
    described = responses.get(str(response.status_code), {})
    if "$ref" in described:
        described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
    problem = described.get("content", {}).get("application/problem+json")
    if problem is not None and "problem" in response.headers["content-type"][0]:
        code = response.json()["code"]
        assert code in problem["examples"], f"{code} is not described, only {sorted(problem['examples'])}"


def for_schemathesis(document: dict[str, Any]) -> Any:
    """Load a copy of the description, which schemathesis may change."""
    config = schemathesis.Config.from_path(CONFIG)
    return schemathesis.openapi.from_dict(deepcopy(document), config=config)


def _is_long(seconds: Any) -> bool:
    try:
        return LONGEST_WAIT < float(seconds) <= 60
    except (TypeError, ValueError):
        return False


def _with_whole_numbers(value: Any) -> Any:
    """Replace integral floats by integers."""
    if isinstance(value, dict):
        return {key: _with_whole_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
