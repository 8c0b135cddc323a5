"""The layout of the code: public names are unique, modules are short, and few are outside of packages."""

import ast
from collections import defaultdict
from pathlib import Path

from tests import ROOT

SOURCES = ROOT / "src" / "broker"
MODULES = sorted(SOURCES.rglob("*.py"))
MOST_LINES = 350
MOST_MODULES_ON_TOP = 8
# Type parameters, which each module defines for itself.
TYPE_PARAMETERS = {"ParamSpec", "TypeVar", "TypeVarTuple"}


def public_types(module: Path) -> set[str]:
    """Return the names of the public classes and type aliases that a module defines."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        match node:
            case ast.ClassDef(name=name):
                names.add(name)
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                is_type = name[0].isupper() and not name.isupper()
                is_parameter = isinstance(value, ast.Call) and ast.unparse(value.func) in TYPE_PARAMETERS
                if is_type and not is_parameter:
                    names.add(name)
    return {name for name in names if not name.startswith("_")}


def test_name_of_a_public_type_is_unique() -> None:
    modules = defaultdict(list)
    for module in MODULES:
        for name in public_types(module):
            modules[name].append(str(module.relative_to(SOURCES)))
    assert len(modules) > 300
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}


def test_modules_are_short() -> None:
    lines = {str(module.relative_to(SOURCES)): len(module.read_text().splitlines()) for module in MODULES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_few_modules_are_outside_of_packages() -> None:
    outside = {module.name for module in SOURCES.glob("*.py")} - {"__init__.py"}
    assert len(outside) <= MOST_MODULES_ON_TOP
