"""The parts of `broker tool`: lines, reports, results, commands and folders."""

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

# Lines and reports


@given(st.binary(), st.lists(st.integers(0, 50)))
def test_lines_do_not_depend_on_the_chunks_of_bytes(data: bytes, sizes: list[int]) -> None:
    whole, cut = LineSplitter(20), LineSplitter(20)
    expected = [*whole.feed(data), *whole.end()]
    lines_found: list[str] = []
    for size in sizes:
        lines_found += cut.feed(data[:size])
        data = data[size:]
    assert [*lines_found, *cut.feed(data), *cut.end()] == expected


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
def test_bytes_are_split_into_clean_lines(data: bytes, lines: list[str]) -> None:
    lines_found = LineSplitter(20)
    assert [*lines_found.feed(data), *lines_found.end()] == lines


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
def test_line_may_contain_progress(line: str, progress: float | None, message: str | None) -> None:
    assert progress_of(line) == (progress, message)


@given(st.lists(st.one_of(st.none(), st.lists(st.text("ab", min_size=1, max_size=9), max_size=60))))
def test_waiting_reports_keep_their_order_and_count_dropped_lines(
    steps: list[list[str] | None],
) -> None:
    pending = PendingReports(most=3, longest=60)
    added: list[str] = []
    reported: list[str] = []
    left_out = 0
    for step in [*steps, *[None] * 3]:
        if step is not None:
            added += step
            pending.add(step)
            assert len(pending) <= 3
        elif len(pending):
            report = pending.pop()
            message = report.message or ""
            assert len(message) <= 60
            if note := re.match(r"\((\d+) lines left out\)\n", message):
                left_out += int(note[1])
                message = message[note.end() :]
            reported += message.split("\n")
    rest = iter(added)
    assert all(line in rest for line in reported), "the lines are not in order"
    assert len(reported) + left_out == len(added)


def test_joined_lines_have_the_newest_progress() -> None:
    pending = PendingReports(most=1, longest=60)
    pending.add(["progress: 10% one", "two", "progress: 20% three", "four"])
    report = pending.pop()
    assert (report.progress, report.message) == (0.2, "one\ntwo\nthree\nfour")


# Results and errors


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
def test_output_becomes_json_a_text_or_null(printed: bytes, result: object) -> None:
    output = Output(on_too_much=lambda: None)
    output.feed(printed)
    lines_found = output.result()
    assert lines_found == result
    assert type(lines_found) is type(result)


@pytest.mark.parametrize("printed", [b"\xff", b'"\xff"', b"a\0b"])
def test_error_about_binary_output_gives_advice(printed: bytes) -> None:
    output = Output(on_too_much=lambda: None)
    output.feed(printed)
    with pytest.raises(FailedError, match="Write a file"):
        output.result()


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "exit status 3"), (-9, "killed by SIGKILL (out of memory?)"), (-40, "signal 40")],
)
def test_error_has_the_exit_status_and_the_last_lines(status: int, words: str) -> None:
    reported = outcome.failure(status, ["x" * 5_000, "the disk is full"])
    assert words in reported.splitlines()[0]
    assert reported.endswith("\nthe disk is full")
    assert len(reported) < 3_100


# Checks before the tool accepts work


def test_command_is_found_by_name_path_and_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_executable(tmp_path / "program")
    (tmp_path / "link").symlink_to("program")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert resolve(["program", "-x"]) == [f"{tmp_path}/program", "-x"]
    assert resolve(["./program"]) == [f"{tmp_path}/program"]
    assert resolve([f"{tmp_path}/link"]) == [f"{tmp_path}/link"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "no program nowhere in the folders of PATH"),
        ("here", r"Did you mean \./here"),
        ("./nowhere", "no program ./nowhere in /"),
        ("./folder", "is a folder"),
        ("./plain", r"chmod \+x \./plain"),
        ("./windows", "Windows line ends"),
        ("./lost", "interpreter '/no/such/python'"),
        ("./bare", "script without an interpreter"),
        ("./empty", "script without an interpreter"),
    ],
)
def test_error_about_a_command_that_cannot_run_gives_advice(
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


def test_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t").chmod(0o777)
    with pytest.raises(CannotRunError, match="--scratch"):
        ToolFolder("t", tmp_path)


def test_created_folder_is_private(tmp_path: Path) -> None:
    folder = ToolFolder("t", tmp_path / "deep" / "down")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_reports_and_results_fit_the_limits_of_the_broker() -> None:
    settings = Settings()
    assert settings.max_text_chars == LONGEST_TEXT_CHARS
    assert settings.max_body_bytes > outcome.MOST_BYTES
