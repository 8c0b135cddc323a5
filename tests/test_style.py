"""Everything people read is in plain English, as CONTRIBUTING.md describes it."""

from pathlib import Path

import pytest

from tests import ROOT
from tests.support.plain_english import files, findings, long_sentences


def test_no_text_has_a_word_or_a_pattern_that_the_style_does_not_allow() -> None:
    problems = [str(finding) for path in files() for finding in findings(path)]
    assert problems == [], "\n".join(problems)


def test_sentences_of_the_documentation_are_short() -> None:
    pages = [path for path in files() if path.suffix == ".md" and "reference" not in path.parts]
    problems = [str(finding) for path in pages for finding in long_sentences(path)]
    assert problems == [], "\n".join(problems)


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("page.md", "The client is told so.\nIt says `told`.\n", 1),
        ("page.md", "What was lost is retried. What was lost?\n", 1),
        ("module.py", '"""What it does."""\n', 2),
        ("module.py", "# Of this,\n# nothing is logged.\nfound = 1\n", 2),
        ("test_x.py", "def test_of_two_the_first_wins(): ...\n", 1),
        ("module.js", "// It waits for ever.\n", 1),
        ("page.md", "The broker retries the task.\n", 0),
    ],
)
def test_checker_finds_each_kind_of_violation(tmp_path: Path, name: str, content: str, number: int) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert len(list(findings(path))) == number


def test_checker_reads_the_whole_project() -> None:
    read = {path.relative_to(ROOT).parts[0] for path in files()}
    assert {"src", "tests", "docs", "containers", "migrations", "examples", "README.md", "Makefile"} <= read
