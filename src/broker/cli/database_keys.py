"""Make, list and revoke keys in the database, for `broker keys` without a broker."""

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
    """The keys in the database of the settings, whether a service uses it or not.

    There has to be a database: no service would use the keys of a new one.
    """

    def __init__(self) -> None:
        self._settings = settings_from_environment()
        self.where = f"in {database_name(self._settings)}"
        require_database(
            self._settings,
            "Set BROKER_URL to a running broker, or BROKER_DATA_DIR or BROKER_DATABASE_URL as its service"
            " has it.",
        )

    def create(self, name: str, roles: Sequence[Role], *, replace: bool) -> tuple[str, bool] | None:
        """Make a key; return it, and whether it is the first. None: there is one of this name."""
        key = new_key()
        with self._database() as url:
            is_first = not run_in_transaction(url, keys.read_all)
            made = run_in_transaction(url, keys.create, name, roles, hashed(key), replace=replace)
        return None if made is None else (key, is_first)

    def rows(self) -> list[Row]:
        """Return the names of the columns, and a row for each key, the revoked ones too."""
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
        """Revoke the key of this name, and return whether there was one in use."""
        with self._database() as url:
            return run_in_transaction(url, keys.revoke, name)

    @contextmanager
    def _database(self) -> Iterator[str]:
        """Start the embedded PostgreSQL for as long as the block takes, if it does not run; yield the URL."""
        with clear_database_errors(), running_database(self._settings) as url:
            yield url
