"""Programs that some tests need: PgBouncer, nginx, Prometheus and Chromium.

If a program is not installed, its tests are skipped, unless `BROKER_TEST_ENGINES=required`.
"""

import os
import shutil

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_program(*names: str) -> str | None:
    """Return the path of the first installed program among these names, or None."""
    return next(filter(None, (shutil.which(name, path=_PATH) for name in names)), None)


def requires_program(*names: str) -> pytest.MarkDecorator:
    """Return the mark of tests that need a program with one of these names."""
    missing = find_program(*names) is None and os.environ.get("BROKER_TEST_ENGINES") != "required"
    return pytest.mark.skipif(missing, reason=f"{names[0]} is not installed")
