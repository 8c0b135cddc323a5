"""The parts that any program as a tool is made of: lines, reports, results, commands, folders."""

import re
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.client import FailedError
from broker.programs import outcome
from broker.programs.command import resolve
from broker.programs.errors import CannotRunError
from broker.programs.folders import ToolFolder
from broker.programs.line_splitter import LineSplitter
from broker.programs.outcome import Output
from broker.programs.pending_reports import PendingReports, progress_of
from broker.schemas.limits import LONGEST_TEXT_CHARS
from broker.settings import Settings
from tests.support.processes import make_executable

# Lines, and the reports that they become


@given(st.binary(), st.lists(st.integers(0, 50)))
def test_lines_are_the_same_however_their_bytes_come(data: bytes, sizes: list[int]) -> None:
    whole, cut = LineSplitter(20), LineSplitter(20)
    expected = [*whole.feed(data), *whole.end()]
    found: list[str] = []
    for size in sizes:
        found += cut.feed(data[:size])
        data = data[size:]
    assert [*found, *cut.feed(data), *cut.end()] == expected


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\r\nthree", ["one", "two", "three"]),
        (b"10%\r20%\r\n\n \n", ["10%", "20%"]),
        (b"  indented \n", ["  indented"]),
        (b"\xffa\0b\n", ["\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}b"]),
        ("µ".encode() * 21, ["µ" * 19 + "…"]),
        (b"x" * 20 + b"\n" + b"y" * 1000 + b"\nz", ["x" * 20, "y" * 19 + "…", "z"]),
    ],
)
def test_what_ends_a_line_and_what_a_line_may_hold(data: bytes, lines: list[str]) -> None:
    found = LineSplitter(20)
    assert [*found.feed(data), *found.end()] == lines


@pytest.mark.parametrize(
    ("line", "progress", "message"),
    [
        ("progress: 0.4 half of it", 0.4, "half of it"),
        ("progress: 40% half of it", 0.4, "half of it"),
        ("Progress: 100 %", 1.0, None),
        ("progress:1", 1.0, None),
        ("progress: .5", 0.5, None),
        ("progress: 1.5 too much", None, "progress: 1.5 too much"),
        ("progress: 101%", None, "progress: 101%"),
        ("progress: -1", None, "progress: -1"),
        ("progress: 3/10 files", None, "progress: 3/10 files"),
        ("progress: nan", None, "progress: nan"),
        ("progress: " + "9" * 400, None, "progress: " + "9" * 400),
        ("no progress: 0.4", None, "no progress: 0.4"),
    ],
)
def test_a_line_may_tell_of_progress(line: str, progress: float | None, message: str | None) -> None:
    assert progress_of(line) == (progress, message)


@given(st.lists(st.one_of(st.none(), st.lists(st.text("ab", min_size=1, max_size=9), max_size=60))))
def test_of_what_waits_to_be_reported_nothing_is_lost_silently_and_no_order(
    steps: list[list[str] | None],
) -> None:
    pending = PendingReports(most=3, longest=60)
    said: list[str] = []
    told: list[str] = []
    left_out = 0
    for step in [*steps, *[None] * 3]:
        if step is not None:
            said += step
            pending.add(step)
            assert len(pending) <= 3
        elif len(pending):
            report = pending.pop()
            message = report.message or ""
            assert len(message) <= 60
            if note := re.match(r"\((\d+) lines left out\)\n", message):
                left_out += int(note[1])
                message = message[note.end() :]
            told += message.split("\n")
    rest = iter(said)
    assert all(line in rest for line in told), "they are not in order"
    assert len(told) + left_out == len(said)


def test_of_joined_lines_the_newest_progress_counts() -> None:
    pending = PendingReports(most=1, longest=60)
    pending.add(["progress: 10% one", "two", "progress: 20% three", "four"])
    report = pending.pop()
    assert (report.progress, report.message) == (0.2, "one\ntwo\nthree\nfour")


# Results, and errors


@pytest.mark.parametrize(
    ("printed", "result"),
    [
        (b"", None),
        (b" \n", None),
        (b' {"a": 1.10}\n', msgspec.Raw(b'{"a": 1.10}')),
        (b"123456789012345678901234567890", msgspec.Raw(b"123456789012345678901234567890")),
        (b"two\nlines\n\n", "two\nlines\n"),
        (b"NaN", "NaN"),
        (b'{"a": NaN}\r\n', '{"a": NaN}'),
        (b'{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 2}'),
        (b"\xc2\xb5", "µ"),
    ],
)
def test_what_is_printed_is_json_or_a_text_or_nothing(printed: bytes, result: object) -> None:
    output = Output(on_too_much=lambda: None)
    output.feed(printed)
    found = output.result()
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize("printed", [b"\xff", b'"\xff"', b"a\0b"])
def test_what_is_no_text_is_no_result_and_it_is_said_what_to_do(printed: bytes) -> None:
    output = Output(on_too_much=lambda: None)
    output.feed(printed)
    with pytest.raises(FailedError, match="write a file"):
        output.result()


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "exit status 3"), (-9, "killed by SIGKILL (out of memory?)"), (-40, "signal 40")],
)
def test_an_error_says_how_the_program_has_ended_and_has_its_last_words(status: int, words: str) -> None:
    told = outcome.failure(status, ["x" * 5_000, "the disk is full"])
    assert words in told.splitlines()[0]
    assert told.endswith("\nthe disk is full")
    assert len(told) < 3_100


# Before any work is taken


def test_a_command_is_found_by_name_by_path_and_as_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_executable(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert resolve(["there", "-x"]) == [f"{tmp_path}/there", "-x"]
    assert resolve(["./there"]) == [f"{tmp_path}/there"]
    assert resolve([f"{tmp_path}/link"]) == [f"{tmp_path}/link"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "no program nowhere in the folders of PATH"),
        ("here", r"Did you mean \./here"),
        ("./nowhere", "no program ./nowhere in /"),
        ("./folder", "is a folder"),
        ("./plain", r"chmod \+x \./plain"),
        ("./windows", "line ends of Windows"),
        ("./lost", "'/no/such/python' runs it"),
        ("./bare", "first line does not say"),
        ("./empty", "first line does not say"),
    ],
)
def test_a_command_that_cannot_be_run_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch()
    make_executable(tmp_path / "here")
    make_executable(tmp_path / "windows", "#!/bin/sh\r\necho\r\n")
    make_executable(tmp_path / "lost", "#!/no/such/python -u\n")
    make_executable(tmp_path / "bare", "echo\n")
    make_executable(tmp_path / "empty", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotRunError, match=says):
        resolve([name])


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t").chmod(0o777)
    with pytest.raises(CannotRunError, match="--scratch"):
        ToolFolder("t", tmp_path)


def test_a_folder_of_ours_is_closed_to_others(tmp_path: Path) -> None:
    folder = ToolFolder("t", tmp_path / "deep" / "down")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_report_is_no_longer_than_the_broker_takes() -> None:
    settings = Settings()
    assert settings.max_text_chars == LONGEST_TEXT_CHARS
    assert settings.max_body_bytes > outcome.MOST_BYTES
