"""Run the tests that depend on uvicorn's internals with its newest version, including pre-releases.

`broker.server.connections` depends on uvicorn's internals, so pyproject.toml pins its version. Run this
before you raise the pin.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib.metadata import version
from pathlib import Path

import click

from tests import ROOT

TESTS = ["connections", "protocol", "response_writer", "serve", "workers"]


def main() -> int:
    """Return the exit status of pytest."""
    pinned = version("uvicorn")
    with tempfile.TemporaryDirectory(prefix="broker-uvicorn-next-") as folder:
        python = _environment(Path(folder))
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # pip warns that the version is beyond the pin, which is the point.
        subprocess.run([*install, "--upgrade", "--pre", "uvicorn[standard]"], check=True)
        show = "from importlib.metadata import version; print(version('uvicorn'))"
        newest = subprocess.run(
            [python, "-c", show], capture_output=True, text=True, check=True
        ).stdout.strip()
        if newest == pinned:
            click.echo(f"uvicorn {pinned}: no newer version exists, running the tests with this one")
        else:
            click.echo(f"uvicorn {newest}: the pinned version is {pinned}")
        tests = [f"tests/server/test_{name}.py" for name in TESTS]
        return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode


def _environment(folder: Path) -> str:
    """Make a virtual environment with the packages of this one; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # `addsitedir`, because a plain path would not find editable installations.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(packages) / "packages_of_the_project.pth").write_text(line)
    return str(python)


if __name__ == "__main__":
    sys.exit(main())
