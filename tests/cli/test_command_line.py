"""Promises of every command: invalid text, closed streams, and running as process 1."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import psutil
import pytest
from click.testing import CliRunner

from broker.cli import main
from broker.programs.line_splitter import LineSplitter
from broker.programs.outcome import Output
from tests.conftest import Running
from tests.support.cli import run
from tests.support.processes import clean_environment

NOT_UTF8 = "\udcff"
NO_BROKER = "http://127.0.0.1:9"
TIMEOUT_SECONDS = 60
BOM = b"\xef\xbb\xbf"
NOT_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a process 1")


def leaves(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command that is not a group, with its words on the command line."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        subcommand = command.get_command(context, name)
        assert subcommand is not None
        yield from leaves(subcommand, (*path, name))


LEAVES = list(leaves(main))
PARAMETERS = [
    (path, command, parameter)
    for path, command in LEAVES
    for parameter in command.params
    # A path may have any bytes, and so may the arguments of a program.
    if not isinstance(parameter.type, click.Path) and parameter.type is not click.UNPROCESSED
    if not (isinstance(parameter, click.Option) and parameter.is_flag)
]


def required(command: click.Command, besides: click.Parameter) -> list[str]:
    """Return valid values for the required parameters of a command, except one."""
    options, arguments = [], []
    for parameter in command.params:
        if parameter is besides or not parameter.required:
            continue
        kind = parameter.type
        value = kind.choices[0] if isinstance(kind, click.Choice) else "1"
        value = __file__ if isinstance(kind, click.Path) else value
        (options if isinstance(parameter, click.Option) else arguments).append((parameter, value))
    words = [word for option, value in options for word in (option.opts[0], value)]
    return [*words, "--", *(value for _, value in arguments)] if arguments else words


@pytest.mark.parametrize("value", [NOT_UTF8, f"a{NOT_UTF8}"])
@pytest.mark.parametrize(
    ("path", "command", "parameter"),
    PARAMETERS,
    ids=[f"{'-'.join(path)}-{parameter.name}" for path, _, parameter in PARAMETERS],
)
def test_value_that_is_not_utf8_is_refused_with_the_name_of_its_option(
    path: tuple[str, ...], command: click.Command, parameter: click.Parameter, value: str
) -> None:
    is_option = isinstance(parameter, click.Option)
    given = [parameter.opts[0], value] if is_option else []
    rest = required(command, parameter)
    ended = CliRunner().invoke(
        main, [*path, *given, *rest, *([] if is_option else [value])], prog_name="broker"
    )
    assert ended.exit_code == 2, ended.output
    named = parameter.opts[0] if is_option else parameter.make_metavar(click.Context(command))
    assert f"Invalid value for '{named}'" in ended.output


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of sh in which `$broker` stands for the command."""
    return subprocess.run(
        ["/bin/sh", "-c", command.replace("$broker", f"{sys.executable} -m broker.cli")],
        env=clean_environment(**environment),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


# All commands print their help in the same way. So two are enough: one imports the service, and the other
# imports the client.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id="-".join(path), marks=() if path[0] in ("serve", "submit") else pytest.mark.thorough
        )
        for path, _ in LEAVES
    ],
)
def test_output_that_cannot_be_written_is_an_error_of_one_line(path: tuple[str, ...]) -> None:
    ended = shell(f"$broker {' '.join(path)} --help >/dev/full")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [b"Error: Cannot write the output: No space left on device."]


def test_closed_standard_output_is_an_error_of_one_line() -> None:
    ended = shell("$broker keys list --help >&-")
    assert (ended.returncode, ended.stderr) == (1, b"Error: Standard output is closed.\n")


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_closed_or_full_stderr_does_not_change_the_exit_status(stream: str) -> None:
    ended = shell(f"$broker keys list --help {stream}")
    assert (ended.returncode, b"Usage:" in ended.stdout) == (0, True)
    assert shell(f"$broker keys list --no-such-option {stream}").returncode == 2


def test_command_ends_quietly_if_its_reader_closes_the_pipe() -> None:
    ended = shell("{ $broker serve --help; echo $? >&2; } | true")
    assert ended.stderr.strip() in (b"0", b"1")


async def test_result_that_cannot_be_written_is_an_error_even_after_success(
    broker: Running, database: str
) -> None:
    await broker.client.post("/v1/tasks", json={"id": "t", "needs": 1})
    for command in (
        f"$broker submit --needs 1 --id t --url {broker.url} >/dev/full",
        f"$broker explain t --url {broker.url} >/dev/full",
        f"$broker top --once --url {broker.url} >/dev/full",
        "$broker migrate >/dev/full",
    ):
        ended = await asyncio.to_thread(shell, command, BROKER_DATABASE_URL=database)
        assert ended.returncode == 1, command
        [line] = [line for line in ended.stderr.splitlines() if line.startswith(b"Error: ")]
        assert b"No space left on device" in line


async def test_connection_never_gets_the_descriptor_of_a_closed_stream(
    broker: Running, database: str
) -> None:
    """Otherwise the connection to the database would be descriptor 1, and PostgreSQL would get the output."""
    ended = await asyncio.to_thread(shell, "$broker migrate <&- >&- 2>&-", BROKER_DATABASE_URL=database)
    assert ended.returncode == 1
    ended = await asyncio.to_thread(shell, "$broker migrate <&- 2>&-", BROKER_DATABASE_URL=database)
    assert (ended.returncode, ended.stdout[:23]) == (0, b"The schema is at versio")


async def test_byte_order_mark_on_standard_input_is_ignored(broker: Running) -> None:
    payload = (BOM + b'{"a": 1}').decode()
    ended = await run(broker.url, "submit", "--needs", "1", "--id", "one", "--payload", "-", stdin=payload)
    assert ended.status == 0, ended.err
    tasks = (BOM + b'{"id": "two", "needs": 1, "payload": 2}\n').decode()
    ended = await run(broker.url, "submit", "--tasks", "-", stdin=tasks)
    assert ended.status == 0, ended.err
    one, two = [(await broker.client.get(f"/v1/tasks/{id_}")).json()["payload"] for id_ in ("one", "two")]
    assert (one, two) == ({"a": 1}, 2)


@pytest.mark.parametrize(
    ("printed", "result"), [(b'{"a": 1}', {"a": 1}), (b"words\r\n", "words"), (b"", None)]
)
def test_byte_order_mark_in_the_output_of_a_program_is_ignored(printed: bytes, result: object) -> None:
    output = Output(lambda: None)
    output.feed(BOM[:1])
    output.feed(BOM[1:] + printed)
    given = output.result()
    assert (msgspec.json.decode(given) if isinstance(given, msgspec.Raw) else given) == result
    assert LineSplitter(100).feed(BOM + b"progress: 50%\n") == ["progress: 50%"]


def test_characters_outside_the_encoding_are_escaped_as_in_json() -> None:
    code = "import click; from broker.cli import main\n"
    code += "text = 'caf\\xe9 \\u20ac \\U0001f600 \\udcff'\n"
    code += "main.callback = lambda: click.echo(text)\nmain(['migrate', '--help'])"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(PYTHONIOENCODING="latin-1"),
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert ended.stdout.splitlines()[0] == b"caf\xe9 \\u20ac \\ud83d\\ude00 \xff", ended.stderr


# This starts twenty processes whose parent ends at once.
ORPHANS = """
import os
for _ in range(20):
    if not os.fork():
        os.fork()
        os._exit(0)
"""


@NOT_ROOT
async def test_tool_as_process_1_reaps_orphans_of_its_programs(broker: Running, tmp_path: Path) -> None:
    orphans = tmp_path / "orphans.py"
    orphans.write_text(ORPHANS)
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "broker.cli"),
        *("tool", "--id", "t", "--skills", "1", "--scratch", str(tmp_path / "scratch"), "--"),
        # The program counts zombies.
        *("sh", "-c", f"{sys.executable} {orphans}; cat /proc/[0-9]*/stat | grep -c ' Z ' || true"),
        env=clean_environment(BROKER_URL=broker.url),
        stderr=subprocess.PIPE,
    )
    try:
        for number in range(4):
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await broker.client.post("/v1/tasks", json={"id": f"t{number}", "needs": 1})
                pair = {"task_id": f"t{number}", "tool_id": "t"}
                while (response := await broker.client.post("/v1/work", json=pair)).status_code == 404:
                    await asyncio.sleep(0.02)
                assert response.status_code == 201
                task = (await broker.client.get(f"/v1/tasks/t{number}?wait=60")).json()
                assert task["state"] == "succeeded", task
        # Only orphans of the last program may still be zombies: the tool has reaped all earlier ones.
        assert task["result"] <= 20
        # Process 1 forwards the signal, and ends with the status of its child.
        [first] = psutil.Process(process.pid).children()
        first.terminate()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
