"""Arrows of the diagram of a task's life in the documentation, as pairs of states."""

import re

from tests import ROOT

#: The state before a task is submitted.
NOWHERE = "start"

_EDGE = re.compile(r'data-from="([\w ]+)" data-to="(\w+)"')
_DIAGRAM = ROOT / "docs" / "images" / "life-of-a-task.svg"

ARROWS = {(start, end) for starts, end in _EDGE.findall(_DIAGRAM.read_text()) for start in starts.split()}
