"""Looks the locked versions up in the list of known holes; where that cannot be reached, says so."""

import json
import subprocess
import sys

import click

from tests import ROOT

LOCK = ROOT / "requirements.lock"


def main() -> int:
    """0: no hole is known, or nothing is; 1: some are."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        click.echo(f"audit: skipped, as pip-audit cannot run here: {reason}")
        return 0
    looked_up = [package for package in found if "skip_reason" not in package]
    if not looked_up:
        click.echo("audit: skipped, as the list of known holes cannot be reached from here")
        return 0
    holes = [(package, hole) for package in looked_up for hole in package["vulns"]]
    for package, hole in holes:
        mended = ", ".join(hole["fix_versions"]) or "no version yet"
        click.echo(f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}")
    click.echo(f"audit: {len(looked_up)} packages looked up, {len(holes)} known holes")
    if skipped := [package["name"] for package in found if "skip_reason" in package]:
        click.echo(f"audit: the list does not have {len(skipped)} packages: {', '.join(skipped)}")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
