"""MultiplexingMixIn itself: many handlers in the thread of serve_forever(), and how they end."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from typing import Any

import pytest
from crews import module_of
from programs import Programs, end
from support import TIMEOUT, Background, connect, handling, receive, serving, wait_until

from fastsock import multiplexing

MANY = 300


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def fastsock(fastsock_dir: str | None) -> Any:
    return module_of("multiplexing", fastsock_dir)


def echo(handler: Any) -> None:
    for line in handler.rfile:
        handler.wfile.write(line)


def start(fastsock: Any, handle: Any, **attributes: Any) -> Any:
    server_class = type("Server", (multiplexing.MultiplexingTCPServer,), attributes)
    return server_class(("127.0.0.1", 0), handling(fastsock, handle))


def test_many_connections_in_one_thread(fastsock: Any) -> None:
    threads = set()

    def handle(handler: Any) -> None:
        threads.add(threading.get_ident())
        echo(handler)

    with start(fastsock, handle) as server, serving(server) as loop:
        clients = [connect(server) for _ in range(MANY)]
        for number, client in enumerate(clients):
            client.sendall(b"%d\nrest of " % number)
        for number, client in enumerate(clients):
            assert client.recv(100) == b"%d\n" % number
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
            client.shutdown(socket.SHUT_WR)
        for number, client in enumerate(clients):
            assert receive(client) == b"rest of %d\n" % number
            client.close()
        assert threads == {loop.ident}


def test_small_writes_leave_together_before_the_handler_waits(fastsock: Any) -> None:
    def handle(handler: Any) -> None:
        for part in (b"a", b"b", b"c"):
            handler.request.sendall(part)
        handler.rfile.readline()

    with start(fastsock, handle) as server, serving(server), connect(server) as client:
        assert client.recv(100) == b"abc"


def test_a_peer_that_does_not_read_suspends_its_own_handler_only(fastsock: Any) -> None:
    whole = b"x" * (8 << 20)

    def handle(handler: Any) -> None:
        if handler.rfile.readline() == b"much\n":
            for _ in range(len(whole) // 2048):
                handler.wfile.write(whole[:2048])
        else:
            handler.wfile.write(b"little\n")

    with start(fastsock, handle) as server, serving(server):
        with connect(server) as slow, connect(server) as other:
            slow.sendall(b"much\n")
            assert slow.recv(1) == b"x"
            other.sendall(b"little\n")
            assert other.recv(100) == b"little\n"
            assert receive(slow) == whole[1:]


def test_closed_by_another(fastsock: Any) -> None:
    found: list[Any] = []
    requests: list[Any] = []

    def handle(handler: Any) -> None:
        if handler.rfile.readline() == b"wait\n":
            requests.append(handler.request)
            try:
                found.append(handler.request.recv(10))
            except OSError as error:
                found.append(error.errno)
        else:
            requests[0].close()
            requests[0]._real_close()  # past the references of its files
            handler.wfile.write(b"closed\n")

    with start(fastsock, handle) as server, serving(server):
        with connect(server) as waiter, connect(server) as closer:
            waiter.sendall(b"wait\n")
            wait_until(lambda: requests)
            closer.sendall(b"close\n")
            assert closer.recv(100) == b"closed\n"
            assert receive(waiter) == b""
    assert found == [9]


def test_an_error_of_held_bytes_is_their_connections_own(fastsock: Any) -> None:
    over = multiplexing.Event()
    peers: dict[bytes, Any] = {}
    told: list[str] = []

    def handle(handler: Any) -> None:
        line = handler.rfile.readline()
        if line != b"send\n":
            peers[line] = handler.request
            over.wait(TIMEOUT)
            return
        for name in (b"gone\n", b"here\n", b"gone\n"):
            try:
                peers[name].sendall(name)
                told.append("sent")
                multiplexing.sleep(0)
            except OSError as error:
                told.append(type(error).__name__)
        over.set()

    with start(fastsock, handle) as server, serving(server):
        with connect(server) as gone, connect(server) as here, connect(server) as sender:
            gone.sendall(b"gone\n")
            here.sendall(b"here\n")
            wait_until(lambda: len(peers) == 2)
            reset(gone)
            sender.sendall(b"send\n")
            assert here.recv(100) == b"here\n"
            assert receive(sender) == b""
    assert told[1] == "sent"
    assert told[2] in ("ConnectionResetError", "BrokenPipeError")


def test_waiting_for_the_descriptor_and_then_receiving(fastsock: Any) -> None:
    def handle(handler: Any) -> None:
        descriptor = handler.request.fileno()
        peeked = multiplexing.spawn(multiplexing.wait, descriptor, read=True, timeout=TIMEOUT)
        multiplexing.sleep(0)
        handler.wfile.write(handler.rfile.readline())
        assert peeked.join(TIMEOUT)

    with start(fastsock, handle) as server, serving(server), connect(server) as client:
        client.sendall(b"a line\n")
        assert receive(client) == b"a line\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # says its hook
@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_what_leaves_a_handler_ends_it_alone(
    fastsock: Any, error: type[BaseException], capsys: Any
) -> None:
    def handle(handler: Any) -> None:
        if handler.rfile.readline() == b"raise\n":
            raise error
        handler.wfile.write(b"alive\n")

    with start(fastsock, handle) as server, serving(server):
        with connect(server) as client:
            client.sendall(b"raise\n")
            assert receive(client) == b""
        with connect(server) as client:
            client.sendall(b"ask\n")
            assert receive(client) == b"alive\n"
    assert ("ValueError" in capsys.readouterr().err) == (error is ValueError)


# --- the end


@pytest.mark.parametrize("attribute", [{"daemon_threads": True}, {"block_on_close": False}])
def test_unwound(fastsock: Any, attribute: dict[str, bool]) -> None:
    """Then `finally` and finish() run, and the connection is ended."""
    trace: list[str] = []

    def handle(handler: Any) -> None:
        handler.wfile.write(b"ready\n")
        try:
            handler.rfile.readline()
        finally:
            trace.append("finally")

    def finish(handler: Any) -> None:
        trace.append("finish")

    server_class = type("Server", (multiplexing.MultiplexingTCPServer,), attribute)
    handler = handling(fastsock, handle, finish=finish)
    with server_class(("127.0.0.1", 0), handler) as server, serving(server) as loop:
        with connect(server) as client:
            assert client.recv(100) == b"ready\n"
            server.shutdown()
            loop.result()
            assert trace == ["finally", "finish"]
            assert receive(client) == b""


def test_waited_for(fastsock: Any) -> None:
    """shutdown() returns at once, serve_forever() when the handlers have ended."""

    def handle(handler: Any) -> None:
        handler.wfile.write(b"ready\n")
        handler.wfile.write(handler.rfile.readline())

    with start(fastsock, handle) as server, serving(server) as loop, connect(server) as client:
        assert client.recv(100) == b"ready\n"
        server.shutdown()
        closing = Background(server.server_close)
        assert loop.is_alive()
        client.sendall(b"last\n")
        assert receive(client) == b"last\n"
        loop.result()
        closing.result()


def test_after_an_interrupt_they_stay_until_the_server_is_closed(fastsock: Any) -> None:
    def handle(handler: Any) -> None:
        handler.wfile.write(b"ready\n")
        handler.wfile.write(handler.rfile.readline())

    server = start(fastsock, handle)
    interrupts: list[BaseException] = []

    def service_actions() -> None:
        if interrupts:
            raise interrupts.pop()

    server.service_actions = service_actions
    with connect(server) as client:
        talk = Background(lambda: (client.recv(100), interrupts.append(KeyboardInterrupt())))
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever(0.01)
        talk.result()
        client.sendall(b"last\n")
        server.server_close()
        assert receive(client) == b"last\n"


def test_a_hub_leaves_nothing_behind(fastsock: Any) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with start(fastsock, echo) as server, serving(server), connect(server) as client:
            client.sendall(b"x\n")
            assert client.recv(10) == b"x\n"
    assert set(os.listdir("/proc/self/fd")) == before


def test_handle_request(fastsock: Any) -> None:
    with start(fastsock, lambda handler: handler.wfile.write(b"hello\n")) as server:
        with connect(server) as client:
            server.handle_request()
            assert receive(client) == b"hello\n"


def test_handle_request_without_a_request(fastsock: Any) -> None:
    """When all handlers have ended, in this thread or in that of a loop."""
    with start(fastsock, lambda handler: handler.wfile.write(b"hello\n")) as server:
        for _ in range(2):
            with connect(server) as client:
                server.handle_request()
                assert receive(client) == b"hello\n"
            server.timeout = 0
            server.handle_request()
            server.timeout = None
        loop = Background(server.serve_forever)
        with connect(server) as client:
            assert receive(client) == b"hello\n"
        server.shutdown()
        loop.result()
        server.timeout = 0
        server.handle_request()


def test_a_fork_in_a_handler(programs: Programs) -> None:
    """The child goes on with its handler, which simply waits, and ends with it."""
    process = programs.script(
        """
        import os, socket, sys, threading
        import fastsock
        from fastsock import multiplexing

        statuses = []

        class Handler(fastsock.StreamRequestHandler):
            def handle(self):
                if self.rfile.readline() != b"fork\\n":
                    return
                pid = os.fork()
                if pid == 0:
                    self.wfile.write(b"child " + self.rfile.readline())
                    return
                statuses.append(multiplexing.to_thread(os.waitpid, pid, 0)[1])

        server = multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), Handler)
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with socket.create_connection(server.server_address, 20) as client:
            with socket.create_connection(server.server_address, 20) as other:
                client.sendall(b"fork\\n")
                client.sendall(b"line\\n")
                client.shutdown(socket.SHUT_WR)
                print(b"".join(iter(lambda: client.recv(100), b"")))
        server.shutdown()
        loop.join()
        server.server_close()
        print(statuses)
        """
    )
    found = end(process)
    assert (found.status, found.out) == (0, "b'child line\\n'\n[0]\n"), found


def test_a_fork_after_the_collector(programs: Programs) -> None:
    """Connections that nobody has closed, and that the collector has found: the hub has no more."""
    process = programs.script(
        """
        import gc, os, socket, threading, warnings
        import fastsock

        warnings.simplefilter("ignore")
        statuses = []

        class Handler(fastsock.StreamRequestHandler):
            def handle(self):
                self.itself = self
                self.wfile.write(b"ready\\n")  # as soon as it waits
                if self.rfile.readline() == b"fork\\n":
                    gc.collect()
                    pid = os.fork()
                    if pid == 0:
                        os._exit(0)
                    statuses.append(os.waitpid(pid, 0)[1])
                self.wfile.write(b"done\\n")

            def finish(self):
                pass

        class Server(fastsock.MultiplexingTCPServer):
            def shutdown_request(self, request):
                pass

        server = Server(("127.0.0.1", 0), Handler)
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        clients = []
        for line in [b"line\\n"] * 50 + [b"fork\\n"]:
            clients.append(socket.create_connection(server.server_address, 20))
            clients[-1].recv(100)
            clients[-1].sendall(line)
            clients[-1].recv(100)
        server.shutdown()
        loop.join()
        server.server_close()
        print(statuses)
        """
    )
    found = end(process)
    assert (found.status, found.out) == (0, "[0]\n"), found


def test_exit_with_many_suspended_handlers(programs: Programs) -> None:
    found = programs.run_script(
        """
        import atexit, socket, threading
        ended = []
        atexit.register(lambda: print("told", len(ended)))  # the last one: the first that is known

        import fastsock
        from fastsock import multiplexing

        class Handler(fastsock.StreamRequestHandler):
            def handle(self):
                self.wfile.write(b"ready")
                try:
                    self.rfile.readline()
                finally:
                    ended.append(1)

        class Server(multiplexing.MultiplexingTCPServer):
            request_queue_size = 1024

        server = Server(("127.0.0.1", 0), Handler)
        clients = [socket.create_connection(server.server_address, 20) for _ in range(500)]

        def stop():
            for client in clients:
                client.recv(100)
            stopping.append(1)

        stopping = []
        threading.Thread(target=stop).start()

        def service_actions():
            if stopping:
                raise KeyboardInterrupt

        server.service_actions = service_actions
        try:
            server.serve_forever(0.01)
        except KeyboardInterrupt:
            print("interrupted", len(ended))
        """
    )
    assert (found.status, found.out) == (0, "interrupted 0\ntold 500\n"), found


# --- reports


def test_a_handler_that_held_the_loop_is_reported(fastsock: Any, caplog: Any) -> None:
    def handle(handler: Any) -> None:
        end_of_work = time.monotonic() + 0.25
        while time.monotonic() < end_of_work:
            pass
        handler.wfile.write(b"done\n")

    with caplog.at_level(logging.WARNING, "fastsock"):
        with start(fastsock, handle) as server, serving(server), connect(server) as client:
            assert receive(client) == b"done\n"
            address = client.getsockname()
            wait_until(lambda: caplog.records)
    message = caplog.records[0].getMessage()
    assert "Handler" in message and repr(address) in message and "held the loop" in message


def test_one_that_never_gives_way_is_reported_with_its_stack(fastsock: Any, caplog: Any) -> None:
    go_on = threading.Event()

    def stubborn(handler: Any) -> None:
        go_on.wait(TIMEOUT)
        handler.wfile.write(b"done\n")

    with caplog.at_level(logging.WARNING, "fastsock"):
        with start(fastsock, stubborn) as server, serving(server), connect(server) as client:
            try:
                wait_until(lambda: caplog.records)
                message = caplog.records[0].getMessage()
                assert "no other can run" in message and "go_on.wait(TIMEOUT)" in message
            finally:
                go_on.set()
            assert receive(client) == b"done\n"
