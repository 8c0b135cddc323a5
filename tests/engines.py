"""Engines that the service is run with: PgBouncer, nginx, Prometheus.

Where they are not installed their tests are skipped, unless `BROKER_TEST_ENGINES=required`.
"""

import os
import shutil

import pytest

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def program(name: str) -> str | None:
    """Where a program is; None: nowhere."""
    return shutil.which(name, path=_PATH)


def needed(name: str) -> pytest.MarkDecorator:
    """The mark of tests that need a program."""
    missing = program(name) is None and os.environ.get("BROKER_TEST_ENGINES") != "required"
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")
