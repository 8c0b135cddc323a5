"""The pictures in README: the dashboard during the demo. `python -m tests.support.screenshots` makes them."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
from playwright.async_api import Page, async_playwright, expect

from tests import ROOT
from tests.support.browser import ARGUMENTS, CHROMIUM
from tests.support.processes import clean_environment, free_port, wait_until_ready

FOLDER = ROOT / "docs" / "images"
SIZE = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    """Watch one demo, and make the pictures."""
    FOLDER.mkdir(exist_ok=True)
    url = f"http://127.0.0.1:{(port := free_port())}"
    with tempfile.TemporaryDirectory(prefix="broker-pictures-") as folder:
        Path(folder).chmod(0o755)
        demo = subprocess.Popen(
            [sys.executable, "-m", "broker.cli", "demo", "--keep", "--port", str(port)],
            env=clean_environment(BROKER_DATA_DIR=f"{folder}/data"),
            stdout=subprocess.DEVNULL,
        )
        try:
            asyncio.run(look(url))
        finally:
            demo.terminate()
            demo.wait()


async def look(url: str) -> None:
    """See the demo from its beginning to its end."""
    await wait_until_ready(url)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page(viewport=SIZE, color_scheme="light")
        phone = await browser.new_page(viewport=PHONE, color_scheme="dark", device_scale_factor=2)
        await asyncio.gather(page.goto(url), phone.goto(url))
        await at_work(page)
        await asyncio.gather(
            page.screenshot(path=FOLDER / "now.png"), phone.screenshot(path=FOLDER / "phone.png")
        )
        await expect(page.get_by_text("No tool has any work.")).to_be_visible(timeout=120_000)
        await page.goto(f"{url}/#/then/{'/'.join(await span(url))}")
        await expect(page.locator("canvas").first).to_be_visible()
        await expect(page.get_by_text("Reading…")).to_have_count(0)
        await page.screenshot(path=FOLDER / "then.png")
        await browser.close()


async def span(url: str) -> tuple[str, str]:
    """From when to when the laboratory was at work."""
    async with httpx.AsyncClient(base_url=url) as http:
        attempts = (await http.get("/v1/overview/timeline")).json()["items"]
    return min(each["assigned_at"] for each in attempts), max(each["ended_at"] for each in attempts)


async def at_work(page: Page) -> None:
    """Return when several tools have told how far they are."""
    bars = page.locator(".tile progress[value]")
    await expect(bars.nth(2)).to_be_visible(timeout=60_000)


if __name__ == "__main__":
    main()
