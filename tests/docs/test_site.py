"""The documentation site is complete, works without the internet, and is served at /help."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from broker.http.assets import WEB
from tests import ROOT
from tests.conftest import Running
from tests.support.browser import needs_chromium, shared_browser, visit
from tests.support.plain_english import files
from tests.support.shared import shared_broker, shared_database

pytestmark = pytest.mark.asyncio(loop_scope="module")
browser = shared_browser
database = shared_database
broker = shared_broker

CONFIGURATION = ROOT / "zensical.toml"
DOCS = ROOT / "docs"


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(DOCS)
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


async def test_help_redirects_to_the_folder_of_a_page(broker: Running) -> None:
    for path, location in (("/help", "help/"), ("/help/operate/backup", "backup/")):
        response = await broker.client.get(path, follow_redirects=False)
        assert (response.status_code, response.headers["location"]) == (308, location)
    assert (await broker.client.get("/help/operate/backup/")).status_code == 200


@pytest.mark.parametrize(
    "path", ["nothing/", "nothing.html", "../app.py", "%2e%2e/app.py", "a%0d%0ab", "%ff"]
)
async def test_unknown_help_page_is_not_found(broker: Running, path: str) -> None:
    response = await broker.client.get(f"/help/{path}")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@needs_chromium
async def test_search_finds_a_page_and_loads_nothing_from_elsewhere(
    broker: Running, browser: Browser
) -> None:
    assert (WEB / "help" / "index.html").exists(), "run `make docs`"
    async with visit(browser, broker.url, "/help/") as visited:
        page = visited.page
        await page.keyboard.press("Control+k")
        await page.keyboard.type("back up")
        result = page.locator("a", has_text="Back up and restore").filter(visible=True).first
        await result.click()
        await expect(page.locator("h1")).to_have_text(re.compile("Back up and restore"))
