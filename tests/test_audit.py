"""The audit fails if a package has a known vulnerability, and reports if it cannot run."""

import json
import subprocess
from typing import Any

import pytest

from tests import ROOT
from tests.support import audit

VULNERABILITY = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": []}
SAFE = {"name": "safe", "version": "1.0", "vulns": []}
VULNERABLE = {"name": "vulnerable", "version": "1.0", "vulns": [VULNERABILITY]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        (json.dumps({"dependencies": [SAFE, UNKNOWN]}), 0, "1 packages checked, 0 known vulnerabilities"),
        (json.dumps({"dependencies": [SAFE, UNKNOWN]}), 0, "1 packages are not in the list: unknown"),
        (json.dumps({"dependencies": [SAFE, VULNERABLE]}), 1, "vulnerable 1.0: PYSEC-1, fixed in 2.0"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, "skipped"),
        ("", 0, "skipped, because pip-audit failed: list unreachable"),
    ],
)
def test_audit_reports_each_result_and_fails_on_a_vulnerability(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    output: str,
    status: int,
    message: str,
) -> None:
    def run(*_: Any, **__: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 1, output, "error\nlist unreachable")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == status
    assert message in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the list of files from Git")
def test_project_contains_no_host_of_a_package_registry() -> None:
    # The brackets keep this line from matching.
    hosts = "(py[p]i|python[h]osted|npm[j]s|crates)[.](org|io|com)|deb[.]debian|archive[.]ubuntu"
    paths = [".", ":!src/broker/web/docs"]
    grep = subprocess.run(
        ["git", "grep", "-lIE", hosts, "--", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (grep.returncode, grep.stdout) == (1, ""), grep.stderr
