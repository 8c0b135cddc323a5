"""`broker demo` as a process: it ends by itself and succeeds."""

import os
import re
import subprocess
import sys
from pathlib import Path

from broker.demo.images import PICTURES
from broker.demo.tool import SKILLS


def test_demo_processes_every_picture_and_exits_0(data_dir: Path) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "broker.cli", "demo", "--data-dir", str(data_dir)],
        env={**os.environ, "BROKER_DATA_DIR": str(data_dir.with_name("of-a-service"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    assert f"{len(PICTURES)} of {len(PICTURES)} tasks succeeded" in demo.stdout
    assert "24 coins" in demo.stdout
    assert "cannot be reached" not in demo.stderr
    for tool in SKILLS:
        assert re.search(rf"{tool}\s+running", demo.stdout), f"{tool} had no work"
    assert not (data_dir / "postgres" / "postmaster.pid").exists(), "its database still runs"
    assert not data_dir.with_name("of-a-service").exists()
    lines = [line for line in demo.stdout.splitlines() if re.search(r" (submitted|assigned|running) ", line)]
    assert len(lines) == len(set(lines)), "a step was printed twice"
