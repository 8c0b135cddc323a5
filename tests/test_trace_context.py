"""What the headers of a trace mean (W3C Trace Context), and what of it is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.trace_context import TraceContext

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("states", "handed_on"),
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
    ids=lambda given: str(given)[:30],
)
def test_a_state_is_handed_on_as_a_whole_or_not_at_all(states: list[str], handed_on: str | list[str]) -> None:
    given = [(b"traceparent", PARENT.encode()), *((b"tracestate", state.encode()) for state in states)]
    context = TraceContext.of(given)
    assert context is not None
    assert context.tracestate == (handed_on if isinstance(handed_on, str) else handed_on[0])


def test_of_a_later_version_what_is_known_of_this_one_is_handed_on() -> None:
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
def test_what_is_kept_is_what_was_said(
    trace: int, span: int, flags: int, state: list[tuple[str, str]]
) -> None:
    parent = f"00-{trace:032x}-{span:016x}-{flags:02x}"
    said = ",".join(f"{key}={value}" for key, value in state)
    context = TraceContext.of([(b"traceparent", parent.encode()), (b"tracestate", said.encode())])
    assert context == TraceContext(parent, said)
    assert TraceContext.read(context.text) == context


@given(parent=st.binary(max_size=70), state=st.binary(max_size=600))
def test_whatever_is_sent_can_be_sent_on(parent: bytes, state: bytes) -> None:
    for value in (parent, PARENT.encode()):
        if context := TraceContext.of([(b"traceparent", value), (b"tracestate", state)]):
            assert TraceContext.read(context.text) == context
            assert all(" " <= sign <= "~" for sign in context.text)
            assert len(context.text) < 600
