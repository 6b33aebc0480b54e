"""A chunked body may not consist of tiny chunks: each costs the event loop as much as a large one."""

from __future__ import annotations

import h11
import pytest

from ui.server.process import CHUNK_BYTES, FREE_CHUNKS, HEADER_BYTES, Connection

POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(size: int, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (size, extension, b"a" * size)


def events(connection: Connection, data: bytes) -> list:
    """Feed bytes to a connection and return the events up to the end of the message or the last complete one."""
    connection.receive_data(data)
    parsed = []
    while (event := connection.next_event()) is not h11.NEED_DATA:
        parsed.append(event)
        if isinstance(event, h11.EndOfMessage):
            break
    return parsed


@pytest.mark.parametrize("extension", [b"", b";" + b"x" * 1_000])
def test_tiny_chunks_are_refused(extension):
    connection = Connection(h11.SERVER, HEADER_BYTES)
    events(connection, POST + chunk(1, extension) * FREE_CHUNKS)
    with pytest.raises(h11.RemoteProtocolError, match="tiny-chunks"):
        events(connection, chunk(1, extension))


def test_tiny_chunks_after_a_large_one_are_refused_in_the_end():
    connection = Connection(h11.SERVER, HEADER_BYTES)
    paid = 100 * FREE_CHUNKS * CHUNK_BYTES
    with pytest.raises(h11.RemoteProtocolError, match="tiny-chunks"):
        events(connection, POST + chunk(paid) + chunk(1) * 110 * FREE_CHUNKS)


@pytest.mark.parametrize("sizes", [[1] * FREE_CHUNKS, [CHUNK_BYTES] * 1_000, [65_536] * 40])
def test_other_bodies_are_read_whole_and_each_request_counts_anew(sizes):
    connection = Connection(h11.SERVER, HEADER_BYTES)
    for _ in range(3):
        parsed = events(connection, POST + b"".join(map(chunk, sizes)) + b"0\r\n\r\n")
        assert sum(len(event.data) for event in parsed if isinstance(event, h11.Data)) == sum(sizes)
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        connection.start_next_cycle()
