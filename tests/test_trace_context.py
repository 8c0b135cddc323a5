"""Parsing and storing of trace headers (W3C Trace Context)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.trace_context import TraceContext

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["a=1, b=2"], "a=1,b=2"),
        (["a=1", "b=2"], "a=1,b=2"),
        (["a=1,, b=2,"], "a=1,b=2"),
        (["tenant@vendor=x y"], "tenant@vendor=x y"),
        (["a"], ""),
        (["A=1"], ""),
        (["a=1,a=2"], ""),
        (["a=\x7f"], ""),
        ([",".join(f"k{number}=1" for number in range(33))], ""),
        ([",".join(f"k{number}=1" for number in range(32))],) * 2,
        (["a=" + "x" * 256, "b=" + "x" * 256], ""),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tracestate_is_passed_on_completely_or_not_at_all(
    states: list[str], expected: str | list[str]
) -> None:
    headers = [(b"traceparent", PARENT.encode()), *((b"tracestate", state.encode()) for state in states)]
    context = TraceContext.of(headers)
    assert context is not None
    assert context.tracestate == (expected if isinstance(expected, str) else expected[0])


def test_fields_of_a_later_version_are_ignored() -> None:
    context = TraceContext.of([(b"traceparent", b"cc" + PARENT[2:].encode() + b"-what-ever")])
    assert context == TraceContext(PARENT)


@given(
    trace=st.integers(1, 2**128 - 1),
    span=st.integers(1, 2**64 - 1),
    flags=st.integers(0, 255),
    state=st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z0-9_*/-]{0,8}", fullmatch=True),
            st.from_regex(r"[ -+\--<>-~]{0,8}[!-+\--<>-~]", fullmatch=True),
        ),
        max_size=20,
        unique_by=lambda member: member[0],
    ),
)
def test_valid_trace_context_is_stored_unchanged(
    trace: int, span: int, flags: int, state: list[tuple[str, str]]
) -> None:
    parent = f"00-{trace:032x}-{span:016x}-{flags:02x}"
    joined = ",".join(f"{key}={value}" for key, value in state)
    context = TraceContext.of([(b"traceparent", parent.encode()), (b"tracestate", joined.encode())])
    assert context == TraceContext(parent, joined)
    assert TraceContext.read(context.text) == context


@given(parent=st.binary(max_size=70), state=st.binary(max_size=600))
def test_any_trace_headers_give_a_context_that_can_be_passed_on(parent: bytes, state: bytes) -> None:
    for value in (parent, PARENT.encode()):
        if context := TraceContext.of([(b"traceparent", value), (b"tracestate", state)]):
            assert TraceContext.read(context.text) == context
            assert all(" " <= character <= "~" for character in context.text)
            assert len(context.text) < 600
