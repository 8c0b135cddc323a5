"""The password file of the database, which hides the password from the environment of a container."""

from pathlib import Path

import pytest
from sqlalchemy import make_url

from broker.settings import Settings, SettingsError


def _write_password(folder: Path, text: str) -> str:
    file = folder / "password"
    file.write_text(text)
    return str(file)


def test_database_password_is_read_from_a_file(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {
            "BROKER_DATABASE_URL": "postgresql://me@pooler:6432/name?sslmode=require",
            "BROKER_LISTEN_URL": "postgresql+asyncpg://me@host-a:5432,host-b:5433/name",
            "BROKER_DATABASE_PASSWORD_FILE": _write_password(tmp_path, "p@ss:/w%rd?\n"),
        }
    )
    url = make_url(str(settings.database_url))
    assert (url.username, url.password, url.host, url.port) == ("me", "p@ss:/w%rd?", "pooler", 6432)
    assert url.query == {"sslmode": "require"}
    assert settings.listen_url == "postgresql+asyncpg://me:p%40ss%3A%2Fw%25rd%3F@host-a:5432,host-b:5433/name"


@pytest.mark.parametrize("url", ["postgresql://me:mine@host/name", "postgresql:///name?host=/run/postgresql"])
def test_url_with_a_password_or_without_a_user_does_not_change(tmp_path: Path, url: str) -> None:
    file = _write_password(tmp_path, "another")
    settings = Settings.from_environment({"BROKER_DATABASE_URL": url, "BROKER_DATABASE_PASSWORD_FILE": file})
    assert settings.database_url == url


def test_error_names_the_setting_of_a_missing_password_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BROKER_DATABASE_PASSWORD_FILE"):
        Settings.from_environment({"BROKER_DATABASE_PASSWORD_FILE": str(tmp_path / "missing")})


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "postgresql:/name",
        "mysql://host/name",
        "postgresql://host:port/name",
        "postgresql://[::1/name",
        "postgresql://host:99999/name",
    ],
)
def test_invalid_database_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"BROKER_DATABASE_URL must look like postgresql://"):
        Settings.from_environment({"BROKER_DATABASE_URL": url})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://a:5432,b:5433/name",
        "postgresql://me@[::1]:5432/name",
        "postgres:///name?host=/run",
        "postgresql://me@host:/name",
        "postgresql+asyncpg://me:p%40@host/name",
    ],
)
def test_every_notation_of_a_database_url_is_accepted(url: str) -> None:
    assert Settings.from_environment({"BROKER_DATABASE_URL": url}).database_url == url
