"""The strategy `schema`: needs are a JSON Schema (draft 2020-12) that the skills have to satisfy.

Anybody who submits writes such a schema, so it is kept from doing harm: nothing is fetched, regular
expressions take linear time, and what is so large, or so often referred to, that it would take long is
refused. `format` is not looked at.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, NoReturn

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError
from msgspec.json import decode

from broker.matching.misfit import Misfit, UnjudgeableError, gap, place, shown
from broker.matching.weight import weight

# What a schema weighs, times the length of the skills: some tenths of a second at worst.
_MOST_WORK = 20_000_000
# The same, for all misfits to be told: they are found all at once, and each takes some microseconds.
_MOST_WORK_FOR_ALL = 50_000
# Of a regular expression that is made ready, in bytes: what repeats repetitions grows beyond that.
_LARGEST_PATTERN = 2**16
_MOST_MISFITS = 100

# What a schema can refuse something with. Other keywords only describe, or help these.
KEYWORDS = frozenset(
    (
        *("type", "const", "enum", "allOf", "anyOf", "oneOf", "not", "if", "$ref"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minLength", "maxLength", "pattern"),
        *("items", "prefixItems", "contains", "minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
        *(
            "properties",
            "patternProperties",
            "additionalProperties",
            "propertyNames",
            "unevaluatedProperties",
        ),
        *("required", "dependentRequired", "dependentSchemas", "minProperties", "maxProperties"),
    )
)
_SIGNS = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<", "const": "="}


class _Ready(NamedTuple):
    """Needs, made ready to be judged."""

    schema: Any
    weight: int
    validator: Draft202012Validator


class _Skills(NamedTuple):
    """Skills, made ready to be judged."""

    value: Any
    length: int


class Schema:
    """Judges by JSON Schema.

    Needs of `true` and `{}` are met by any skills. An object in which nothing is a keyword that could refuse
    something, like `{"gpu": 2}`, is a schema that all skills satisfy, too, and certainly not meant to be one:
    it cannot be judged.
    """

    def needs(self, text: bytes) -> _Ready:
        """The needs, made ready.

        Raises:
            UnjudgeableError: They are no schema, or one that is not taken.
        """
        schema = decode(text)
        if not isinstance(schema, dict | bool):
            raise UnjudgeableError("the needs are no JSON Schema: that is an object, true or false")
        if isinstance(schema, dict) and schema and KEYWORDS.isdisjoint(schema):
            some = ", ".join(shown(key) for key in islice(schema, 3))
            raise UnjudgeableError(
                f"the needs are no JSON Schema: {some} is no keyword that asks for anything"
            )
        weighs = weight(schema)
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
            raise UnjudgeableError(f"the needs are no JSON Schema{where}: {error.message}") from None
        except ValueError as error:
            raise UnjudgeableError(f"the needs are no JSON Schema: {error}") from None
        return _Ready(schema, weighs, validator)

    def skills(self, text: bytes) -> _Skills:
        """The skills, as a Python value."""
        return _Skills(decode(text), len(text))

    def matches(self, skills: _Skills, needs: _Ready) -> bool:
        """Whether the skills satisfy the needs.

        Raises:
            UnjudgeableError: It might take too long.
        """
        _not_too_long(skills, needs)
        return needs.validator.is_valid(skills.value)

    def misfits(self, skills: _Skills, needs: _Ready) -> list[Misfit]:
        """What the skills lack, up to a hundred of it; where there may be very much, one thing.

        Raises:
            UnjudgeableError: It might take too long.
        """
        return [_misfit(error, needs.schema) for error in islice(_errors(skills, needs), _MOST_MISFITS)]


def _refuse(uri: str) -> NoReturn:
    """Nothing is fetched."""
    raise UnjudgeableError(f"{shown(uri)} is elsewhere")


def _not_too_long(skills: _Skills, needs: _Ready) -> None:
    if skills.length * needs.weight > _MOST_WORK:
        raise UnjudgeableError("the schema is too large to be held against skills that are as large")


def _errors(skills: _Skills, needs: _Ready) -> Iterator[ValidationError]:
    _not_too_long(skills, needs)
    if skills.length * needs.weight <= _MOST_WORK_FOR_ALL:
        yield from needs.validator.iter_errors(skills.value)
        return
    try:
        needs.validator.validate(skills.value)
    except ValidationError as error:
        yield error


def _misfit(error: ValidationError, schema: Any) -> Misfit:
    keyword, path = error.kind.name, tuple(error.instance_path)
    if keyword == "required":
        path = (*path, error.kind.as_dict()["property"])
        return Misfit(wanted=place(path), had=f"no {place(path)}", path=path, absent=True)
    where = place(path) or "skills"
    if keyword == "falseSchema":
        return Misfit(wanted=f"no {where}", had=shown(error.instance), path=path)
    value = _at(schema, error.schema_path)
    wanted = _wanted(where, keyword, value)
    return Misfit(wanted=wanted, had=shown(error.instance), path=path, gap=gap(value, error.instance))


def _wanted(where: str, keyword: str, value: Any) -> str:
    """What a keyword asks for, in as few words as say it."""
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
    """What is at a place in a schema; the path that an error tells goes through no references."""
    try:
        for step in path:
            schema = schema[step]
    except (KeyError, IndexError, TypeError):
        return None
    return schema
