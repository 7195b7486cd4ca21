"""The calls of a Connection that its channel does not make, in tasks: sendmsg(), sendfile()."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import TIMEOUT, receive
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]
MUCH = 5_000_000
MSG_ERRQUEUE = 0x2000  # Linux


def sendfile(request: Any, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        request.sendfile(file)


SENDS: dict[str, Callable[[Any, bytes], Any]] = {
    "sendall": lambda request, data: request.sendall(data),
    "sendmsg": lambda request, data: request.sendmsg([data[:7], data[7:]]),
    "sendto": lambda request, data: request.sendto(data, request.getpeername()),
    "sendfile": sendfile,
}


@pytest.mark.parametrize("second", SENDS)
@pytest.mark.parametrize("first", SENDS)
def test_one_behind_the_other(tasks: Any, first: str, second: str) -> None:
    """What two tasks send does not mix, however long the peer takes."""
    begun = threading.Event()

    def act() -> None:
        request = multiplexing.create_connection(listener.getsockname())
        peers.append(listener.accept()[0])
        both = [
            multiplexing.spawn(SENDS[first], request, b"x" * MUCH),
            multiplexing.spawn(SENDS[second], request, b"second"),
        ]
        multiplexing.sleep(0)  # both have begun, and wait
        begun.set()
        assert all(spawned.join(TIMEOUT) for spawned in both)
        request.close()

    peers: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        job = tasks.start(act)
        assert begun.wait(TIMEOUT)
        with peers[0] as peer:
            peer.settimeout(TIMEOUT)
            received = receive(peer)
        job.result()
    assert len(received) == MUCH + 6
    assert received.endswith(b"second")


def test_others_run_between_the_pieces_of_a_file(
    tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    original = os.sendfile

    def noted(*arguments: Any) -> int:
        taken = original(*arguments)
        events.append("piece")
        return taken

    def act() -> None:
        request = multiplexing.create_connection(listener.getsockname())
        peer = listener.accept()[0]
        other = multiplexing.spawn(count)
        sendfile(request, bytes(1 << 20))
        events.append("over")
        request.close()
        other.join(TIMEOUT)
        peers.append(peer)

    def count() -> None:
        while "over" not in events:
            events.append("other")
            multiplexing.sleep(0)

    peers: list[socket.socket] = []
    monkeypatch.setattr(os, "sendfile", noted)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tasks.run(act)
        with peers[0] as peer:
            peer.settimeout(TIMEOUT)
            assert receive(peer) == bytes(1 << 20)
    pieces = [index for index, event in enumerate(events) if event == "piece"]
    assert len(pieces) >= 4
    assert all(events[index + 1] == "other" for index in pieces[:-1])


def test_the_timeout_is_that_of_the_whole_call(serve: Serve) -> None:
    """Readable all the time, and yet there is nothing to receive: others run, and it ends."""
    begun = threading.Event()

    def handle(self: Any) -> None:
        request = self.request
        if request.recv(4) == b"ask\n":
            request.sendall(b"answer\n")
            return
        request.settimeout(0.1)
        request.recv(1, socket.MSG_PEEK)
        begun.set()
        try:
            request.recvmsg(10, 100, MSG_ERRQUEUE)
        except TimeoutError as error:
            request.sendall(str(error).encode())
        request.recv(1)

    served = serve(handle, base="BaseRequestHandler")
    client = served.connect(b"waitx")
    assert begun.wait(TIMEOUT)
    assert served.ask(b"ask\n") == b"answer\n"
    assert receive(client) == b"timed out"


def test_an_empty_queue_of_errors(serve: Serve) -> None:
    """It is not waited for, as by the system call."""

    def handle(self: Any) -> None:
        self.request.recv(1, socket.MSG_PEEK)
        try:
            self.request.recvmsg(10, 100, MSG_ERRQUEUE)
        except BlockingIOError:
            self.request.sendall(b"empty")
        self.request.recv(1)

    served = serve(handle, base="BaseRequestHandler")
    assert receive(served.connect(b"x")) == b"empty"
