"""The strategy `schema`: needs are a JSON Schema (draft 2020-12) that the skills must satisfy.

Every submitter can write such a schema, so the strategy must be safe. It fetches nothing, evaluates regular
expressions in linear time, and refuses a schema that would take too long. It ignores `format`.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, NoReturn

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError
from msgspec.json import decode

from broker.matching.mismatch import Mismatch, UnjudgeableError, gap, place, shown
from broker.matching.schema_cost import schema_cost

# The limit for the cost of a schema times the length of the skills. It takes less than a second.
_MOST_WORK = 20_000_000
# The limit for finding all mismatches. The validator finds all of them, in a few microseconds each.
_MOST_WORK_FOR_ALL = 50_000
# The maximum size of a compiled regular expression, in bytes. Nested repetitions exceed it.
_LARGEST_PATTERN = 2**16
_MOST_MISMATCHES = 100

# The keywords with which a schema can refuse a value. Other keywords only describe a value or support these.
KEYWORDS = frozenset(
    (
        *("type", "const", "enum", "allOf", "anyOf", "oneOf", "not", "if", "$ref"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern"),
        *("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
        *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties"),
        *("propertyNames", "minProperties", "maxProperties"),
        *("required", "dependentRequired", "dependentSchemas"),
    )
)
_SIGNS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<", "const": "="}


class _Needs(NamedTuple):
    schema: Any
    cost: int
    validator: Draft202012Validator


class _Skills(NamedTuple):
    value: Any
    length: int


class Schema:
    """The strategy `schema`; see `Strategy` for the methods.

    Any skills meet the needs `true` and `{}`. Any skills would also satisfy an object without a keyword that
    can refuse a value, like `{"gpu": 2}`. Its author certainly meant no schema, so the strategy refuses it.
    """

    def needs(self, text: bytes) -> _Needs:
        """Prepare needs.

        Raises:
            UnjudgeableError: The needs are not a schema, or the strategy does not accept it.
        """
        schema = decode(text)
        if not isinstance(schema, dict | bool):
            raise UnjudgeableError("the needs are not a JSON Schema, which must be an object, true or false")
        if isinstance(schema, dict) and schema and KEYWORDS.isdisjoint(schema):
            some = ", ".join(shown(key) for key in islice(schema, 3))
            raise UnjudgeableError(
                f"the needs are not a JSON Schema: no key ({some}) is a keyword that restricts the skills"
            )
        cost = schema_cost(schema)
        try:
            validator = Draft202012Validator(
                schema,
                validate_formats=False,
                retriever=_refuse,
                pattern_options=RegexOptions(size_limit=_LARGEST_PATTERN),
            )
        except ValidationError as error:
            at = place(tuple(error.instance_path))
            where = f" at {at}" if at else ""
            raise UnjudgeableError(f"the needs are not a valid JSON Schema{where}: {error.message}") from None
        except ValueError as error:
            raise UnjudgeableError(f"the needs are not a valid JSON Schema: {error}") from None
        return _Needs(schema, cost, validator)

    def skills(self, text: bytes) -> _Skills:
        """Decode skills."""
        return _Skills(decode(text), len(text))

    def matches(self, skills: _Skills, needs: _Needs) -> bool:
        """Return whether the skills satisfy the needs."""
        _check_work(skills, needs)
        return needs.validator.is_valid(skills.value)

    def mismatches(self, skills: _Skills, needs: _Needs) -> list[Mismatch]:
        """Return up to a hundred mismatches, or only the first one if finding all would take too long."""
        return [_mismatch(error, needs.schema) for error in islice(_errors(skills, needs), _MOST_MISMATCHES)]


def _refuse(uri: str) -> NoReturn:
    raise UnjudgeableError(f"the schema refers to {shown(uri)}, which is outside the schema")


def _check_work(skills: _Skills, needs: _Needs) -> None:
    if skills.length * needs.cost > _MOST_WORK:
        raise UnjudgeableError("the schema and the skills are too large to compare")


def _errors(skills: _Skills, needs: _Needs) -> Iterator[ValidationError]:
    _check_work(skills, needs)
    if skills.length * needs.cost <= _MOST_WORK_FOR_ALL:
        yield from needs.validator.iter_errors(skills.value)
        return
    try:
        needs.validator.validate(skills.value)
    except ValidationError as error:
        yield error


def _mismatch(error: ValidationError, schema: Any) -> Mismatch:
    keyword, path = error.kind.name, tuple(error.instance_path)
    if keyword == "required":
        path = (*path, error.kind.as_dict()["property"])
        return Mismatch(wanted=place(path), had=f"no {place(path)}", path=path, absent=True)
    where = place(path) or "skills"
    if keyword == "falseSchema":
        return Mismatch(wanted=f"no {where}", had=shown(error.instance), path=path)
    value = _at(schema, error.schema_path)
    wanted = _wanted(where, keyword, value)
    return Mismatch(wanted=wanted, had=shown(error.instance), path=path, gap=gap(value, error.instance))


def _wanted(where: str, keyword: str, value: Any) -> str:
    """Return a short description of the requirement of a keyword."""
    if keyword in _SIGNS:
        return f"{where} {_SIGNS[keyword]} {shown(value)}"
    if keyword == "contains" and isinstance(value, dict) and value.keys() == {"const"}:
        return f"{where} = {shown(value['const'])}"
    if keyword == "enum":
        return f"{where} in {shown(value)}"
    if keyword == "type":
        names = value if isinstance(value, list) else [value]
        return f"{where} of type {' or '.join(map(str, names))}"
    return f"{where} with {keyword} {shown(value)}"


def _at(schema: Any, path: "list[str | int]") -> Any:
    """Return the part of a schema at the path of an error, or None if the path follows a reference."""
    try:
        for step in path:
            schema = schema[step]
    except (KeyError, IndexError, TypeError):
        return None
    return schema
