"""Stream handlers and their connections: how both end, who may use them, what clients do."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Trace,
    ask,
    connect,
    handling,
    hang_up,
    kinds,
    new,
    receive,
    serving,
    wait_until,
)

Make = Callable[..., Any]
each_wbufsize = pytest.mark.parametrize("wbufsize", [0, 1024, -1])


class Recorded(io.BytesIO):
    def __init__(self, calls: list[str], error: BaseException | None = None) -> None:
        super().__init__()
        self.calls, self.error = calls, error

    def flush(self) -> None:
        if not self.closed:
            self.calls.append("flush")
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.calls.append("close")
        error, self.error = self.error, None
        super().close()
        self.error = error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (None, False),
        (ConnectionAbortedError(103, "gone"), False),
        (BrokenPipeError(32, "gone"), False),
        (OSError("whatever"), False),
        (ValueError("a bug"), True),
    ],
    ids=repr,
)
def test_final_flush(ss: ModuleType, pair: Any, error: Exception | None, raised: bool) -> None:
    """wfile is flushed, then both are closed; an OSError of the flush is nobody's business."""
    calls: list[str] = []
    handlers = []

    class Handler(ss.StreamRequestHandler):
        def setup(self) -> None:
            super().setup()
            handlers.append(self)
            self.wfile.close()
            self.wfile = Recorded(calls, error)

    if raised:
        with pytest.raises(ValueError):
            Handler(pair[1], None, None)
        assert calls == ["flush"]
        handlers[0].rfile.close()
    else:
        Handler(pair[1], None, None)
        assert calls[0] == "flush"
        assert "close" in calls
        assert handlers[0].wfile.closed and handlers[0].rfile.closed


@each_wbufsize
def test_files_closed_by_the_handler(ss: ModuleType, pair: Any, wbufsize: int) -> None:
    client, request = pair

    def handle(self: Any) -> None:
        self.wfile.write(b"bye")
        self.wfile.close()
        self.rfile.close()
        with pytest.raises(ValueError):
            self.rfile.read()
        if wbufsize:
            with pytest.raises(ValueError):
                self.wfile.write(b"x")

    handling(ss, handle, wbufsize=wbufsize)(request, None, None)
    assert client.recv(10) == b"bye"


@each_wbufsize
def test_connection_reset_by_the_client(
    ss: ModuleType, make: Make, trace: Trace, wbufsize: int
) -> None:
    """What the handler and handle_error() see is the same as in the standard library."""
    import socketserver

    class Handler:
        def handle(self: Any) -> None:
            try:
                self.rfile.readline()
            except OSError as error:
                trace.log("read", type(error).__name__, error.errno)
            try:
                self.wfile.write(b"too late\n")
            except OSError as error:
                trace.log("write", type(error).__name__, error.errno)

    class Server:
        def handle_error(self, request: Any, client_address: Any) -> None:
            trace.log("handle_error")

    traces = []
    for module in (ss, socketserver):
        server_class = new("Server", Server, module.TCPServer)
        handler = new("Handler", Handler, module.StreamRequestHandler, wbufsize=wbufsize)
        with server_class(("127.0.0.1", 0), handler) as server:
            client = connect(server)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            trace.clear()
            server.handle_request()
            traces.append([(event.call, event.exception) for event in trace.events()])
    assert traces[0] == traces[1]
    assert traces[0]


def test_half_closed_by_the_client(ss: ModuleType, make: Make) -> None:
    """The client's end of file does not keep it from reading the answer."""

    def handle(self: Any) -> None:
        self.wfile.write(str(len(self.rfile.read())).encode())

    server = make(ss.ThreadingTCPServer, handling(ss, handle))
    with serving(server), connect(server) as client:
        client.sendall(b"x" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b"100000"


def test_both_ways_at_once(ss: ModuleType, make: Make) -> None:
    """One thread may write while another one reads."""

    def handle(self: Any) -> None:
        def answer() -> None:
            for _ in range(50):
                self.wfile.write(b"y" * 10_000)

        writer = threading.Thread(target=answer)
        writer.start()
        assert len(self.rfile.read(300_000)) == 300_000
        writer.join(TIMEOUT)

    server = make(ss.ThreadingTCPServer, handling(ss, handle))
    with serving(server), connect(server) as client:
        client.sendall(b"x" * 300_000)
        assert receive(client) == b"y" * 500_000


def test_connection_shut_down_by_another_thread(ss: ModuleType, make: Make) -> None:
    """A handler that waits for its client sees the end of the stream."""
    requests, lines = [], []

    def handle(self: Any) -> None:
        requests.append(self.request)
        lines.append(self.rfile.readline())

    server = make(ss.ThreadingTCPServer, handling(ss, handle))
    with serving(server), connect(server) as client:
        wait_until(lambda: requests)
        requests[0].shutdown(socket.SHUT_RD)
        assert receive(client) == b""
    assert lines == [b""]


def test_detached_connection(ss: ModuleType, make: Make) -> None:
    """A handler may take the descriptor away and keep it."""
    kept = []

    def handle(self: Any) -> None:
        kept.append(socket.socket(fileno=self.request.detach()))

    server = make(ss.TCPServer, new("Handler", ss.BaseRequestHandler, handle=handle))
    with connect(server) as client:
        server.handle_request()
        with kept[0] as connection:
            connection.sendall(b"still here")
        assert receive(client) == b"still here"


def test_duplicated_connection(ss: ModuleType, make: Make) -> None:
    """shutdown_request() shuts the writing side down for every copy of the descriptor."""
    kept = []

    def handle(self: Any) -> None:
        kept.append(self.request.dup())

    server = make(ss.TCPServer, new("Handler", ss.BaseRequestHandler, handle=handle))
    with connect(server) as client:
        server.handle_request()
        assert receive(client) == b""
        with kept[0] as connection:
            client.sendall(b"one way")
            assert connection.recv(100) == b"one way"
            with pytest.raises(BrokenPipeError):
                connection.send(b"x")
        hang_up(client)


@kinds(flavours=("",), transports=("TCP", "UnixStream"))
def test_raw_requests(ss: ModuleType, kind: Any, make: Make) -> None:
    """A BaseRequestHandler uses the socket's own methods."""

    def handle(self: Any) -> None:
        assert self.request.recv(3) == b"abc"
        buffer = bytearray(2)
        assert self.request.recv_into(buffer) == 2
        assert self.request.recv(1, socket.MSG_PEEK) == b"f"
        with self.request.makefile("rw", encoding="ascii", newline="\n") as file:
            assert file.readline() == "fg\n"
            file.write("text")
        assert self.request.send(buffer) == 2
        assert self.request.sendmsg([b"1", b"2"]) == 2

    server = make(kind.server(ss), new("Handler", ss.BaseRequestHandler, handle=handle))
    with serving(server):
        assert ask(server, b"abcdefg\n") == b"textde12"


def test_a_write_of_wfiles_class_that_is_patched(
    ss: ModuleType, time_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called; so is what it was before."""
    written = []
    genuine = ss._SocketWriter.write

    def write(self: Any, b: Any) -> Any:
        written.append((self is handlers[-1].wfile, bytes(b)))
        return genuine(self, b)

    def handle(self: Any) -> None:
        handlers.append(self)
        self.wfile.write(b"one")
        self.wfile.writelines([b"two", b"three"])

    handlers: list[Any] = []
    with ss.TCPServer(("127.0.0.1", 0), handling(ss, handle)) as server, serving(server):
        assert ask(server) == b"onetwothree"
        monkeypatch.setattr(ss._SocketWriter, "write", write)
        assert ask(server) == b"onetwothree"
        monkeypatch.undo()
        assert ask(server) == b"onetwothree"
    assert written == [(True, b"one"), (True, b"two"), (True, b"three")]


@pytest.mark.parametrize("of", ["the request", "a keyword", "another socket"])
def test_a_class_that_derives_from_wfiles(ss: ModuleType, time_limit: None, of: str) -> None:
    found: list[Any] = []

    def handle(self: Any) -> None:
        class Counting(type(self.wfile)):  # type: ignore[misc]
            total = 0

            def write(self, b: Any) -> Any:
                count = super().write(b)
                self.total += count
                return count

        near, far = socket.socketpair()
        with near, far:
            if of == "a keyword":
                self.wfile = Counting(sock=self.request)
            else:
                self.wfile = Counting(near if of == "another socket" else self.request)
            found.append(isinstance(self.wfile, (io.BufferedIOBase, ss._SocketWriter)))
            found.append(isinstance(self.wfile, Counting))
            found.append(self.wfile.__class__ is Counting)
            found.append("Counting object at" in repr(self.wfile))
            found.append(self.wfile._sock is (near if of == "another socket" else self.request))
            self.wfile.writelines([b"one", memoryview(b"two")])
            found.append((self.wfile.total, self.wfile.writable(), self.wfile.closed))
            if of == "another socket":
                self.request.sendall(far.recv(10))
            self.finish()
            found.append(self.wfile.closed)

    with ss.TCPServer(("127.0.0.1", 0), handling(ss, handle)) as server, serving(server):
        assert ask(server) == b"onetwo"
    assert found == [True, True, True, True, True, (6, True, False), True]
