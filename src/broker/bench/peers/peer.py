"""The peers: task queues on PostgreSQL that a user might choose instead of the broker."""

import json
from pathlib import Path
from typing import Any

from msgspec import Struct

_HERE = Path(__file__).parent


class PeerError(Exception):
    """A peer cannot be measured. The message says why."""


class Peer(Struct, frozen=True, kw_only=True):
    """A peer.

    Args:
        name: The name in the output.
        version: The measured version.
        packages: The packages to install, with their versions.
        program: The file that submits and handles tasks.
        left: The query for the number of tasks that have not ended.
        runs_on_node: Whether npm installs it; otherwise pip.
    """

    name: str
    version: str
    packages: tuple[str, ...]
    program: str
    left: str
    runs_on_node: bool = False

    def command(self, folder: Path, role: str, order: dict[str, Any]) -> list[str]:
        """Return the command that submits or handles tasks.

        Args:
            folder: The folder of the installation.
            role: `submitter` or `worker`.
            order: The number of tasks and other facts of the workload.
        """
        arguments = [str(_HERE / self.program), role, json.dumps(order)]
        if self.runs_on_node:
            return ["node", *arguments, str(folder)]
        # Without -P, Python would look for packages in the folder of the program, too.
        return [str(folder / "bin" / "python"), "-P", *arguments]


PGQUEUER = Peer(
    name="PgQueuer",
    version="1.6.0",
    packages=("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0"),
    program="pgqueuer_program.py",
    left="select count(*) from pgqueuer",
)
GRAPHILE_WORKER = Peer(
    name="graphile-worker",
    version="0.17.3",
    packages=("graphile-worker@0.17.3", "pg@8.23.1"),
    program="graphile_program.mjs",
    left="select count(*) from graphile_worker._private_jobs",
    runs_on_node=True,
)
PEERS = (PGQUEUER, GRAPHILE_WORKER)
