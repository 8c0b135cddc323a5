"""Check the locked versions for known vulnerabilities. If the list is unreachable, the check is skipped."""

import json
import subprocess
import sys

import click

from tests import ROOT

LOCK = ROOT / "requirements.lock"


def main() -> int:
    """Return 1 if a package has a known vulnerability. Otherwise, or if the check is skipped, return 0."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        click.echo(f"audit: skipped, because pip-audit failed: {reason}")
        return 0
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        click.echo("audit: skipped, because the list of known vulnerabilities is unreachable")
        return 0
    vulnerabilities = [(package, each) for package in checked for each in package["vulns"]]
    for package, vulnerability in vulnerabilities:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        click.echo(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    click.echo(f"audit: {len(checked)} packages checked, {len(vulnerabilities)} known vulnerabilities")
    if skipped := [package["name"] for package in packages if "skip_reason" in package]:
        click.echo(f"audit: {len(skipped)} packages are not in the list: {', '.join(skipped)}")
    return 1 if vulnerabilities else 0


if __name__ == "__main__":
    sys.exit(main())
