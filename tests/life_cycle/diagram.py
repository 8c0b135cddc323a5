"""The arrows of the README's diagram of a task's life, as pairs of states."""

import re

from tests import ROOT

README = (ROOT / "README.md").read_text()

#: Where every task comes from.
NOWHERE = "[*]"

_STATE = r"(\[\*\]|\w+)"
_ARROW = re.compile(rf"^ *{_STATE} --> {_STATE}", re.MULTILINE)
_COMPOSITE = re.compile(r'^ *state "[^"]*" as (\w+) \{\n(.*?)\n *\}\n', re.MULTILINE | re.DOTALL)


def arrows(diagram: str) -> set[tuple[str, str]]:
    """All of them; those that leave a composite state leave each state in it, and into it lead to its first.

    Args:
        diagram: In Mermaid's language, a `stateDiagram-v2`.
    """
    inside = {name: _ARROW.findall(body) for name, body in _COMPOSITE.findall(diagram)}
    members = {
        name: {state for arrow in found for state in arrow} - {NOWHERE} for name, found in inside.items()
    }
    first = {name: next(to for start, to in found if start == NOWHERE) for name, found in inside.items()}
    within = {arrow for found in inside.values() for arrow in found if arrow[0] != NOWHERE}
    outer = {
        (start, first.get(end, end))
        for whence, end in _ARROW.findall(_COMPOSITE.sub("", diagram))
        for start in members.get(whence, {whence})
        if end != NOWHERE
    }
    return within | outer


[_diagram] = re.findall(r"```mermaid\n(stateDiagram-v2\n.+?)```", README, re.DOTALL)
ARROWS = arrows(_diagram)
