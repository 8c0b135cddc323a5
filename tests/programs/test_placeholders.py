"""Placeholders for fields of a payload in a command."""

import shlex

import pytest
from msgspec import Raw

from broker.programs.errors import CannotRunError
from broker.programs.placeholders import Template

PAYLOAD = Raw(
    b'{"file": "/data/a b.raw", "n": 1.10, "on": true, "of": [1, {"x": 2}], "low": -5,'
    b' "odd": "--files0-from=/x", "quotes": "\'; rm -rf ~; \\"{file}"}'
)


@pytest.mark.parametrize(
    ("command", "becomes"),
    [
        ("wc -w {file}", ["wc", "-w", "/data/a b.raw"]),
        ("fit --in={file} --n={n}", ["fit", "--in=/data/a b.raw", "--n=1.10"]),
        ("fit {on} {of}", ["fit", "true", '[1, {"x": 2}]']),
        ("fit {low} --low={low}", ["fit", "-5", "--low=-5"]),
        ("fit {quotes}", ["fit", "'; rm -rf ~; \"{file}"]),
        ("fit --odd={odd}", ["fit", "--odd=--files0-from=/x"]),
        ("awk '{print $1}' {file}", ["awk", "{print $1}", "/data/a b.raw"]),
        ("fit ${n} $n", ["fit", "${n}", "$n"]),
        ("fit {} {1} '{a b}' {{n}}", ["fit", "{}", "{1}", "{a b}", "{{n}}"]),
    ],
)
def test_field_of_the_payload_replaces_its_placeholder(command: str, becomes: list[str]) -> None:
    assert Template(shlex.split(command)).fill(PAYLOAD) == becomes


@pytest.mark.parametrize(
    ("command", "payload", "says"),
    [
        ("wc {files}", PAYLOAD, "has no field 'files'"),
        ("wc {file}", Raw(b"[1]"), "not an object"),
        ("wc {file}", Raw(b"null"), "not an object"),
        ("wc {odd}", PAYLOAD, "would treat as an option"),
    ],
)
def test_error_about_an_unusable_field_says_why(command: str, payload: Raw, says: str) -> None:
    with pytest.raises(CannotRunError, match=says):
        Template(shlex.split(command)).fill(payload)


@pytest.mark.parametrize(
    "command",
    [
        "{tool} x",
        "python {file}",
        "sh -x {file} 1",
        "/usr/bin/python3.12 -u {f}",
        "nice -n 5 python {file}",
        "env A=b bash {file}",
        "ssh host wc {file}",
        "parallel wc ::: {file}",
        "awk {file}",
        "flock /tmp/lock sh {file}",
    ],
)
def test_payload_cannot_decide_which_program_runs(command: str) -> None:
    with pytest.raises(CannotRunError, match="must not decide which program runs"):
        Template(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "unfilled"),
    [
        ("sh -c 'wc {file}'", ["{file}"]),
        ("sh -c wc{file}", ["{file}"]),
        ("sh -c {file}", ["{file}"]),
        ("sh -c -- 'wc {file}'", ["{file}"]),
        ("bash -c -x 'wc {file}'", ["{file}"]),
        ("bash -c -x {file}", ["{file}"]),
        ("nice sh -c {file}", ["{file}"]),
        ("nice sh -c 'wc {file}'", ["{file}"]),
        ("bash -xc 'wc {file} {n}' sh {n}", ["{file}", "{n}"]),
        ("bash -e -c {file}", ["{file}"]),
        ("python3.11 -W ignore -c 'print({n})'", ["{n}"]),
        ("python3 -W ignore -c {file}", ["{file}"]),
        ("perl -e '{n}'", ["{n}"]),
        ("su nobody -c {file}", ["{file}"]),
        ("flock /tmp/lock sh -c {file}", ["{file}"]),
        ("env -S {file}", ["{file}"]),
        ("unknown-shell 'wc {file}'", ["{file}"]),
        ("sh -c 'echo ${n}' sh {n}", []),
        ("sh -c 'wc \"$1\"' sh {n}", []),
        ("wc -c {file}", []),
        ("grep -e {file}", []),
        ("sh fit.sh {n}", []),
        ("awk '{print $1}' {n}", []),
    ],
)
def test_program_text_stays_unchanged(command: str, unfilled: list[str]) -> None:
    template = Template(shlex.split(command))
    assert template.unfilled == unfilled
    filled = template.fill(PAYLOAD)
    assert all(placeholder in " ".join(filled) for placeholder in unfilled)
    assert ("1.10" in filled) is command.endswith(" {n}")


@pytest.mark.parametrize("value", ["-inf", "-nan", "-1_0", "-0x1", "--x", "-"])
def test_field_that_looks_like_an_option_is_refused(value: str) -> None:
    with pytest.raises(CannotRunError, match="would treat as an option"):
        Template(["ls", "{x}"]).fill(Raw(f'{{"x": "{value}"}}'.encode()))
