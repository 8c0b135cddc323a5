"""Fields of a payload in a command."""

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
def test_a_field_of_the_payload_stands_where_its_name_was(command: str, becomes: list[str]) -> None:
    assert Template(shlex.split(command)).filled(PAYLOAD) == becomes


@pytest.mark.parametrize(
    ("command", "payload", "says"),
    [
        ("wc {files}", PAYLOAD, "has no 'files'"),
        ("wc {file}", Raw(b"[1]"), "no object"),
        ("wc {file}", Raw(b"null"), "no object"),
        ("wc {odd}", PAYLOAD, "would take it for an option"),
    ],
)
def test_what_cannot_stand_there_is_told(command: str, payload: Raw, says: str) -> None:
    with pytest.raises(CannotRunError, match=says):
        Template(shlex.split(command)).filled(payload)


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
def test_what_runs_is_not_for_a_payload_to_say(command: str) -> None:
    with pytest.raises(CannotRunError, match="not for a payload to say"):
        Template(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "left_alone"),
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
def test_the_text_of_a_program_stays_as_it_is(command: str, left_alone: list[str]) -> None:
    template = Template(shlex.split(command))
    assert template.left_alone == left_alone
    filled = template.filled(PAYLOAD)
    assert all(place in " ".join(filled) for place in left_alone)
    assert ("1.10" in filled) is command.endswith(" {n}")


@pytest.mark.parametrize("value", ["-inf", "-nan", "-1_0", "-0x1", "--x", "-"])
def test_what_looks_like_an_option_is_no_number(value: str) -> None:
    with pytest.raises(CannotRunError, match="would take it for an option"):
        Template(["ls", "{x}"]).filled(Raw(f'{{"x": "{value}"}}'.encode()))
