"""Programs that the service is run with, and looked at: PgBouncer, nginx, Prometheus, Chromium.

Where they are not installed their tests are skipped, unless `BROKER_TEST_ENGINES=required`.
"""

import os
import shutil

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def find_program(*names: str) -> str | None:
    """Where a program is that has one of these names; None: nowhere."""
    return next(filter(None, (shutil.which(name, path=_PATH) for name in names)), None)


def requires_program(*names: str) -> pytest.MarkDecorator:
    """The mark of tests that need a program that has one of these names."""
    missing = find_program(*names) is None and os.environ.get("BROKER_TEST_ENGINES") != "required"
    return pytest.mark.skipif(missing, reason=f"{names[0]} is not installed")
