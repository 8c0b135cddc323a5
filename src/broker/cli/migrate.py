"""`broker migrate`: upgrade the schema of the user's own database."""

import click

from broker.cli.database import clear_database_errors, run_in_transaction, settings_from_environment
from broker.cli.stop_signals import run_async
from broker.store import migration, schema_version

_EXAMPLES = """
\b
Example:
  BROKER_DATABASE_URL=postgresql://broker@db/broker broker migrate
"""


@click.command(epilog=_EXAMPLES)
def migrate() -> None:
    """Upgrade the schema of the database of BROKER_DATABASE_URL to the version of this broker.

    Back up the database first with `broker backup`. For the embedded PostgreSQL, `broker serve` upgrades the
    schema itself. For more about upgrades, see /help/operate/upgrade/ on the service.
    """
    url = settings_from_environment().direct_url
    if url is None:
        raise click.ClickException("Set BROKER_DATABASE_URL=postgresql://user:password@host/name first.")
    with clear_database_errors():
        try:
            run_async(migration.migrate, url)
        except OSError as error:
            raise click.ClickException(f"The database does not respond: {error}") from error
        version = run_in_transaction(url, schema_version.current_version)
    click.echo(f"The schema is at version {version}.")
