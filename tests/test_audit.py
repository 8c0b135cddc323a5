"""The look at known holes: it fails when there is one, and says so when it cannot be taken."""

import json
import subprocess
from typing import Any

import pytest

from tests import ROOT
from tests.support import audit

HOLE = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": []}
FINE = {"name": "fine", "version": "1.0", "vulns": []}
HOLED = {"name": "holed", "version": "1.0", "vulns": [HOLE]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        (json.dumps({"dependencies": [FINE, UNKNOWN]}), 0, "1 packages checked, 0 known vulnerabilities"),
        (json.dumps({"dependencies": [FINE, UNKNOWN]}), 0, "1 packages are not in the list: unknown"),
        (json.dumps({"dependencies": [FINE, HOLED]}), 1, "holed 1.0: PYSEC-1, fixed in 2.0"),
        (json.dumps({"dependencies": [UNKNOWN]}), 0, "skipped"),
        ("", 0, "skipped, because pip-audit failed: no way to the list"),
    ],
)
def test_what_is_found_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str, status: int, said: str
) -> None:
    def run(*_: Any, **__: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.CompletedProcess([], 1, output, "trouble\nno way to the list")

    monkeypatch.setattr(subprocess, "run", run)
    assert audit.main() == status
    assert said in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git knows which files are the project's")
def test_no_host_of_a_package_registry_is_named() -> None:
    # In brackets, so that this line does not name them, either.
    hosts = "(py[p]i|python[h]osted|npm[j]s|crates)[.](org|io|com)|deb[.]debian|archive[.]ubuntu"
    where = [".", ":!src/broker/web/docs"]
    found = subprocess.run(
        ["git", "grep", "-lIE", hosts, "--", *where], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (1, ""), found.stderr
