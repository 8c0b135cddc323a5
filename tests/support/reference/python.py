"""Generate the reference page about the Python client, from its docstrings."""

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator

import griffe
from griffe import Class, DocstringSection, Function, Object

from tests import ROOT
from tests.support.reference import layout
from tests.support.reference.layout import code, listed

_INTRODUCTION = """`broker.client` has everything that a Python program needs to be a tool, to submit tasks,
or to be an assigner. [Python tools](../guides/python-tools.md) and
[Submit from Python](../guides/submit-from-python.md) show examples."""
_WIDTH = 90
_INDENTED = re.compile(r"(?m)(?:^ {4}.*\n?|^\n(?= {4}))+")


def page() -> str:
    """Return the reference page about the Python client, as Markdown."""
    importlib.import_module("broker.client")
    module = griffe.load(
        "broker.client",
        search_paths=[ROOT / "src"],
        docstring_parser="google",
        # A description of several lines is one item.
        docstring_options={"warnings": False, "returns_multiple_items": False, "returns_named_value": False},
    )
    exported = [module[name] for name in module.exports or []]
    resolved = [item.final_target if item.is_alias else item for item in exported]
    return layout.page(
        "Python client",
        _INTRODUCTION,
        *(section for item in resolved for section in _sections(item, f"## {item.name}", item.name)),
    )


def _sections(item: Object, heading: str, name: str) -> Iterator[str]:
    yield heading
    if isinstance(item, Class):
        if "__init__" in item.all_members:
            yield _signature(name, item)
    elif isinstance(item, Function):
        yield _signature(name, item)
    yield from _docstring(item)
    if isinstance(item, Class):
        for member_name, member in item.all_members.items():
            target = member.final_target if member.is_alias else member
            if member_name.startswith("_") or target.docstring is None:
                continue
            yield from _sections(target, f"### {name}.{member_name}", f"{name}.{member_name}")


def _signature(name: str, function: Class | Function) -> str:
    shown = []
    for parameter in function.parameters:
        if parameter.name in {"self", "cls"}:
            continue
        kind = parameter.kind.value if parameter.kind else ""
        if kind == "keyword-only" and not any(text.startswith("*") for text in shown):
            shown.append("*")
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        default = "" if parameter.default is None or prefix else f" = {_value(parameter.default, function)}"
        annotation = f": {parameter.annotation}" if parameter.annotation is not None else ""
        shown.append(f"{prefix}{parameter.name}{annotation}{default}")
    returns = f" -> {function.returns}" if isinstance(function, Function) and function.returns else ""
    line = f"{name}({', '.join(shown)}){returns}"
    if len(line) > _WIDTH:
        line = "\n    ".join([f"{name}(", *(f"{text}," for text in shown)]) + f"\n){returns}"
    return f"```text\n{line}\n```"


def _value(default: object, function: Class | Function) -> object:
    """Return a default, and for a constant its value."""
    if re.fullmatch("[A-Z_]+", str(default)):
        return getattr(sys.modules[function.module.path], str(default))
    return default


def _docstring(item: Object) -> Iterator[str]:
    for section in item.docstring.parsed if item.docstring else []:
        yield from _section(section)


def _section(section: DocstringSection) -> Iterator[str]:
    match section.kind.value:
        case "text":
            yield _with_code(inspect.cleandoc(section.value))
        case "parameters" | "attributes" | "raises" | "returns" | "yields":
            yield f"**{section.title or section.kind.value.capitalize()}**"
            yield listed(_line(element) for element in section.value)
        case "admonition":
            yield f"**{section.title}**"
            yield _python(textwrap.dedent(section.value.description).strip())
        case "examples":
            for _, text in section.value:
                yield text
        case kind:
            raise ValueError(f"a docstring has a section of an unknown kind: {kind}")


def _with_code(text: str) -> str:
    """Return a text with its indented blocks as Python code."""
    return _INDENTED.sub(lambda block: f"\n{_python(textwrap.dedent(block[0]).strip())}\n", text).strip()


def _python(program: str) -> str:
    return f"<!-- syntax only -->\n```python\n{program}\n```"


def _line(element: griffe.DocstringElement) -> str:
    name = getattr(element, "name", "") or (str(element.annotation) if element.annotation else "")
    text = " ".join(element.description.split())
    return f"{code(name)}: {text}" if name else text
