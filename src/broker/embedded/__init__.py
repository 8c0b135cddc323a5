"""The Postgres that comes with the package, so that `broker serve` needs no database installed.

Three nouns: the account it runs as, the programs it is made of, and the running cluster.
"""

from broker.embedded.cluster import EmbeddedPostgres
from broker.embedded.errors import EmbeddedError, FolderInUseError

__all__ = ["EmbeddedError", "EmbeddedPostgres", "FolderInUseError"]
