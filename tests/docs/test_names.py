"""Names of settings, tests and folders in the documentation exist."""

import re
from pathlib import Path

import pytest

from broker.schemas.problems import ERROR_CODES
from broker.schemas.states import VERDICTS
from broker.settings import Settings, describe, variable_of
from tests import ROOT
from tests.support import markdown

SETTINGS = [variable_of(name) for name in Settings.__struct_fields__]
#: Every variable that the service, a command or a test reads or sets.
VARIABLES = {
    *SETTINGS,
    *(
        name
        for folder in ("src", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"BROKER_[A-Z_]+", path.read_text())
    ),
}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_variable_named_in_a_page_exists(page: Path) -> None:
    named = set(re.findall(r"`(BROKER_[A-Z_]+)`", page.read_text()))
    assert named <= VARIABLES


def test_serve_help_describes_every_setting_once() -> None:
    described = re.findall(r"^ +(BROKER_\w+)  \[.+\n +\S.+", describe(), re.MULTILINE)
    assert described == SETTINGS


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/guarantees.md"])
def test_every_test_named_in_a_page_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    existing = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 10
    assert named <= existing
    assert [path for path in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / path).exists()] == []


def test_every_folder_of_the_source_is_explained_to_contributors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    explained = re.findall(r"^\| `([a-z/]+/)` \|", markdown.section(text, "Find your way"), re.MULTILINE)
    assert [folder for folder in explained if not (ROOT / folder).is_dir()] == []
    source = ROOT / "src" / "broker"
    rooms = {f"src/broker/{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert rooms <= set(explained)


def test_troubleshooting_has_every_verdict_and_every_error_code() -> None:
    text = (ROOT / "docs" / "operate" / "troubleshooting.md").read_text()
    assert [name for name in (*VERDICTS, *sorted(ERROR_CODES)) if f"`{name}`" not in text] == []
