"""accept(), connect() and sendfile() on a request that is a plain socket."""

from __future__ import annotations

import socket
import tempfile

import pytest
from crews import Crew
from support import TIMEOUT

from fastsock import _guests


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_accept_and_connect(crew: Crew, timeout: float | None) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    _guests.adopt(listener)
    listener.settimeout(timeout)

    def accept() -> bytes:
        accepted, _ = listener.accept()
        with accepted:
            received: bytes = accepted.recv(10)  # it waits for what the other task sends later
            return received

    def dial() -> None:
        with socket.socket() as sock:
            _guests.adopt(sock)
            sock.settimeout(timeout)
            sock.connect(listener.getsockname())
            sock.sendall(b"hello")

    with listener:
        accepting = crew.start(accept)
        crew.run(lambda: None)
        crew.run(dial)
        assert accepting.result() == b"hello"
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            crew.run(listener.accept)
        with pytest.raises(ConnectionRefusedError), socket.socket() as sock:
            _guests.adopt(sock)
            closed = socket.create_server(("127.0.0.1", 0))
            address = closed.getsockname()
            closed.close()
            crew.run(sock.connect, address)


def test_sendfile(crew: Crew) -> None:
    ours, theirs = socket.socketpair()
    _guests.adopt(theirs)
    data = bytes(range(256)) * 8000
    with ours, theirs, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        sending = crew.start(theirs.sendfile, file)
        crew.run(lambda: None)
        ours.settimeout(TIMEOUT)
        received = bytearray()
        while len(received) < len(data):
            received += ours.recv(1 << 16)
        assert sending.result() == len(data)
        assert received == data
