"""The documentation site is complete, and every reference to it is right."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.support.plain_english import files

CONFIGURATION = ROOT / "zensical.toml"
DOCS = ROOT / "docs"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    configuration = CONFIGURATION.read_text().replace("src/broker/web/help", "site")
    (tmp_path / "zensical.toml").write_text(configuration)
    build = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    assert (tmp_path / "site" / "index.html").exists()


def pages_of_navigation(navigation: list[Any]) -> Iterator[str]:
    for entry in navigation:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages_of_navigation(target)


def test_navigation_lists_every_page_once() -> None:
    navigation = tomllib.loads(CONFIGURATION.read_text())["project"]["nav"]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(pages_of_navigation(navigation)) == sorted(pages)


def test_every_help_path_in_a_text_of_the_program_exists() -> None:
    linked = {
        (path.relative_to(ROOT).as_posix(), target)
        for path in files(ROOT / "src", ROOT / "containers", ROOT / "compose.yaml")
        for target in re.findall(r"/help/([\w/-]+)", path.read_text())
    }
    assert linked
    assert [
        (path, target) for path, target in sorted(linked) if not (DOCS / f"{target.strip('/')}.md").exists()
    ] == []


def test_no_text_of_the_program_points_to_a_file_that_is_not_installed() -> None:
    for path in files(ROOT / "src"):
        assert re.findall(r"\bdocs/[\w/-]+\.md\b|README\.md", path.read_text()) == [], path
