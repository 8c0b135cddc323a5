"""The reference pages of the documentation, generated from the code.

`python -m tests.support.reference` writes them to docs/reference. A test compares them with the code.
"""

from collections.abc import Callable, Mapping

from tests import ROOT
from tests.support.reference import alerts, cli, errors, http, metrics, python, roles, settings, states

FOLDER = ROOT / "docs" / "reference"

#: The function that generates each page, by the page's file name.
PAGES: Mapping[str, Callable[[], str]] = {
    "alerts.md": alerts.page,
    "cli.md": cli.page,
    "errors.md": errors.page,
    "http.md": http.page,
    "metrics.md": metrics.page,
    "python.md": python.page,
    "roles.md": roles.page,
    "settings.md": settings.page,
    "states.md": states.page,
}
