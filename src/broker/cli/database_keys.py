"""Create, list and revoke keys in the database, for `broker keys` without a running broker."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from broker.access.keyring import hashed, new_key
from broker.cli.database import (
    clear_database_errors,
    database_name,
    require_database,
    run_in_transaction,
    running_database,
    settings_from_environment,
)
from broker.cli.keys import Row, key_row
from broker.schemas.keys import Role
from broker.store import keys


class DatabaseKeys:
    """The keys in the database of the settings, which a service may use at the same time.

    The database must exist, because no service would use the keys of a new one.
    """

    def __init__(self) -> None:
        self._settings = settings_from_environment()
        self.where = f"in {database_name(self._settings)}"
        require_database(
            self._settings,
            "Set BROKER_URL to the URL of a running broker, or set BROKER_DATA_DIR or BROKER_DATABASE_URL as"
            " for the service.",
        )

    def create(self, name: str, roles: Sequence[Role], *, replace: bool) -> tuple[str, bool] | None:
        """Create a key. Return it and whether it is the first key, or None if the name is in use."""
        key = new_key()
        with self._database() as url:
            is_first = not run_in_transaction(url, keys.read_all)
            created = run_in_transaction(url, keys.create, name, roles, hashed(key), replace=replace)
        return None if created is None else (key, is_first)

    def rows(self) -> list[Row]:
        """Return the names of the columns, and a row for each key, including revoked keys."""
        with self._database() as url:
            all_keys = run_in_transaction(url, keys.read_all)
        return [
            ("NAME", "ROLES", "CREATED", "LAST USED", "REVOKED"),
            *(
                key_row(key.name, key.roles, key.created_at, key.last_used_at, key.revoked_at)
                for key in all_keys
            ),
        ]

    def revoke(self, name: str) -> bool:
        """Revoke the key of this name, and return whether there was one that was not revoked."""
        with self._database() as url:
            return run_in_transaction(url, keys.revoke, name)

    @contextmanager
    def _database(self) -> Iterator[str]:
        """Yield the URL of the database. Run the embedded PostgreSQL during the block if no service does."""
        with clear_database_errors(), running_database(self._settings) as url:
            yield url
