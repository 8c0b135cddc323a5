"""How an answer goes over its connection: in one piece, and nothing of it waits for what may never come."""

import asyncio
from collections.abc import Iterable

import pytest

from broker.server.connections.response_writer import ResponseWriter


class Wire(asyncio.Transport):
    """A connection that remembers what was sent over it, piece by piece."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.closed
        self.sent.append(data)

    def writelines(self, list_of_data: Iterable[bytes]) -> None:  # type: ignore[override]
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def wire() -> Wire:
    return Wire()


async def until_free() -> None:
    """Let the event loop do all that is to be done now."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_head_and_body_go_together(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head,")
    answer.write(b"body")
    assert wire.sent == [b"head,body"]
    await until_free()
    assert wire.sent == [b"head,body"]


async def test_a_head_that_nothing_follows_yet_is_sent(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head")
    await until_free()
    assert wire.sent == [b"head"]


async def test_what_follows_goes_as_it_comes(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head,")
    for piece in (b"one", b"two", b"three"):
        answer.write(piece)
    assert wire.sent == [b"head,one", b"two", b"three"]
    later = ResponseWriter(wire)
    later.write(b"head")
    await until_free()
    later.write(b"one")
    assert wire.sent[3:] == [b"head", b"one"]


async def test_a_body_without_a_byte_lets_its_head_go(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head")
    answer.write(b"")
    assert wire.sent == [b"head"]


async def test_a_head_is_sent_before_its_connection_is_closed(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head")
    answer.close()
    assert (wire.sent, wire.closed, answer.is_closing()) == ([b"head"], True, True)
    await until_free()


async def test_over_a_connection_that_is_gone_nothing_is_sent(wire: Wire) -> None:
    answer = ResponseWriter(wire)
    answer.write(b"head")
    wire.close()
    await until_free()
    assert wire.sent == []
