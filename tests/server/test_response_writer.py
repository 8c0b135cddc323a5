"""A response is sent with few writes, and no part of it waits for a later part that may never exist."""

import asyncio
from collections.abc import Iterable

import pytest

from broker.server.connections.response_writer import ResponseWriter


class RecordingTransport(asyncio.Transport):
    """A transport that records each write."""

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
def transport() -> RecordingTransport:
    return RecordingTransport()


async def run_pending_callbacks() -> None:
    """Let the event loop run all callbacks that are due."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_head_and_body_are_sent_together(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head,")
    writer.write(b"body")
    assert transport.sent == [b"head,body"]
    await run_pending_callbacks()
    assert transport.sent == [b"head,body"]


async def test_head_without_a_body_yet_is_sent(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head")
    await run_pending_callbacks()
    assert transport.sent == [b"head"]


async def test_later_parts_of_the_body_are_sent_at_once(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head,")
    for piece in (b"one", b"two", b"three"):
        writer.write(piece)
    assert transport.sent == [b"head,one", b"two", b"three"]
    later = ResponseWriter(transport)
    later.write(b"head")
    await run_pending_callbacks()
    later.write(b"one")
    assert transport.sent[3:] == [b"head", b"one"]


async def test_empty_body_sends_the_head(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head")
    writer.write(b"")
    assert transport.sent == [b"head"]


async def test_head_is_sent_before_the_connection_closes(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head")
    writer.close()
    assert (transport.sent, transport.closed, writer.is_closing()) == ([b"head"], True, True)
    await run_pending_callbacks()


async def test_nothing_is_sent_on_a_closed_connection(transport: RecordingTransport) -> None:
    writer = ResponseWriter(transport)
    writer.write(b"head")
    transport.close()
    await run_pending_callbacks()
    assert transport.sent == []
