"""Build the documentation into the package, for an ordinary and for an editable installation."""

import subprocess
import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DocumentationHook(BuildHookInterface):
    """A build hook that runs Zensical, which `zensical.toml` configures."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build `docs/` into `src/broker/web/help`.

        Args:
            version: The kind of the build.
            build_data: The contents of the package; the configuration already lists the folder.

        Raises:
            CalledProcessError: A page has a broken link, or another fault that strict mode refuses.
        """
        if self.target_name == "wheel":
            command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
            subprocess.run(command, cwd=self.root, check=True)  # noqa: S603 # fixed arguments
