"""Servers: their hooks, their thresholds, and how they are closed."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, Background, connect, handling, new, receive, serving, wait_until
from talks import Served

from fastsock import _hubs, multiplexing

Serve = Callable[..., Served]
REPORTS = "fastsock"  # the logger


class Stop(Exception):
    """Of a hook: it leaves serve_forever()."""


@pytest.fixture
def fastsock(fastsock_dir: str | None, time_limit: None, nothing_left_over: None) -> Any:
    return module_of("multiplexing", fastsock_dir)


def start(fastsock: Any, handle: Any, **attributes: Any) -> Any:
    server_class = new("Server", multiplexing.MultiplexingTCPServer, **attributes)
    return server_class(("127.0.0.1", 0), handling(fastsock, handle))


def hold(seconds: float) -> None:
    """As one who computes: nobody else of the thread runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def waiting(server: Any) -> int:
    """How many wait for the end of its handlers."""
    return len(vars(server)["_fastsock_tasks"]._waiting)


# --- hooks


def test_process_request_thread_may_be_overridden(ss: ModuleType, serve: Serve) -> None:
    seen = []

    def process_request_thread(self: Any, request: Any, client_address: Any) -> None:
        seen.append(client_address)
        ss.ThreadingMixIn.process_request_thread(self, request, client_address)

    served = serve(
        lambda handler: handler.wfile.write(handler.rfile.readline()),
        process_request_thread=process_request_thread,
    )
    with served.connect(b"line\n") as client:
        assert receive(client) == b"line\n"
        assert seen == [client.getsockname()]


@pytest.mark.parametrize("attribute", [{"daemon_threads": True}, {"block_on_close": False}])
def test_a_request_whose_server_ends_before_it_has_begun(
    fastsock: Any, attribute: dict[str, bool]
) -> None:
    """No handler is made for it; it is ended through shutdown_request()."""
    made: list[Any] = []
    ended: list[Any] = []

    class Server(multiplexing.MultiplexingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            self.shutdown()

        def shutdown_request(self, request: Any) -> None:
            ended.append(request)
            super().shutdown_request(request)

    handler = handling(fastsock, lambda self: None, setup=lambda self: made.append(1))
    with new("Server", Server, **attribute)(("127.0.0.1", 0), handler) as server:
        with connect(server) as client:
            server.serve_forever(0.01)
            assert receive(client) == b""
    assert (len(made), len(ended)) == (0, 1)
    ended.clear()


def test_somebody_else_is_faster_to_accept(fastsock: Any) -> None:
    """A process that shares the listener, say: the loop does not wait for the next client."""
    stolen: list[Any] = []
    thieving = threading.Event()

    class Server(multiplexing.MultiplexingTCPServer):
        def get_request(self) -> Any:
            if thieving.is_set() and not stolen:
                with socket.socket(fileno=os.dup(self.fileno())) as another:
                    stolen.append(another.accept()[0])
            return super().get_request()

    def handle(handler: Any) -> None:
        for line in handler.rfile:
            handler.wfile.write(line)

    with Server(("127.0.0.1", 0), handling(fastsock, handle)) as server, serving(server):
        with connect(server) as client:
            client.sendall(b"ready\n")
            assert client.recv(100) == b"ready\n"
            thieving.set()
            with connect(server):
                wait_until(lambda: stolen)
                client.sendall(b"go on\n")
                assert client.recv(100) == b"go on\n"
                stolen[0].close()


def test_a_handler_may_not_serve(fastsock: Any) -> None:
    def handle(handler: Any) -> None:
        with start(fastsock, lambda handler: None) as another:
            try:
                another.serve_forever(0.01)
            except RuntimeError as error:
                handler.wfile.write(str(error).encode())

    with start(fastsock, handle) as server, serving(server), connect(server) as client:
        assert b"cannot be served by a handler" in receive(client)


# --- reports


def test_each_server_has_a_threshold_of_its_own(fastsock: Any, caplog: Any) -> None:
    """Of several in one thread."""

    def handle(handler: Any) -> None:
        hold(0.1)
        handler.wfile.write(b"done\n")

    with (
        caplog.at_level(logging.WARNING, REPORTS),
        start(fastsock, handle, slow_handler_threshold=TIMEOUT) as patient,
        start(fastsock, handle, slow_handler_threshold=0.01) as strict,
    ):
        loop = Background(fastsock.serve_forever, patient, strict, poll_interval=0.01)
        try:
            with connect(patient) as client:
                assert receive(client) == b"done\n"
            with connect(strict) as client:
                assert receive(client) == b"done\n"
                address = client.getsockname()
                wait_until(lambda: caplog.records)
        finally:
            patient.shutdown()
            strict.shutdown()
            loop.result()
    (record,) = caplog.records
    assert repr(address) in record.getMessage()


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks so often that what it must not tell is told many times in a fifth of a second."""
    monkeypatch.setattr(_hubs, "LOOK_EVERY", 0.005)
    monkeypatch.setattr(_hubs, "HELD_TOO_LONG", 0.02)


def test_the_watch_tells_of_one_hold_once(fastsock: Any, caplog: Any, quick_watch: None) -> None:
    def handle(handler: Any) -> None:
        hold(0.2)
        handler.wfile.write(b"done\n")

    with caplog.at_level(logging.WARNING, REPORTS):
        with start(fastsock, handle) as server, serving(server), connect(server) as client:
            assert receive(client) == b"done\n"
    told = [record for record in caplog.records if "no other can run" in record.getMessage()]
    assert len(told) == 1


def test_the_watch_tells_of_no_loop_that_sleeps(
    fastsock: Any, caplog: Any, quick_watch: None
) -> None:
    with caplog.at_level(logging.WARNING, REPORTS):
        with start(fastsock, lambda handler: handler.rfile.readline()) as server:
            with serving(server, 60), connect(server):
                time.sleep(0.2)  # in which nothing happens
    assert not caplog.records


def test_it_serves_where_no_thread_can_be_started_for_the_watch(
    fastsock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "fastsock watch":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    with start(fastsock, lambda handler: handler.wfile.write(b"done\n")) as server:
        with serving(server), connect(server) as client:
            assert receive(client) == b"done\n"
        assert os.get_blocking(server.fileno())


# --- the end


def test_a_handler_closes_its_server(fastsock: Any) -> None:
    """It unwinds and waits for the others, and goes on itself."""
    unwound = []

    def handle(handler: Any) -> None:
        if handler.rfile.readline() == b"wait\n":
            handler.wfile.write(b"waits\n")
            try:
                handler.rfile.readline()
            finally:
                unwound.append(True)
        else:
            handler.server.server_close()
            handler.wfile.write(b"%d\n" % len(unwound))
            handler.wfile.write(handler.rfile.readline())

    with start(fastsock, handle, daemon_threads=True) as server:
        with connect(server) as other, connect(server) as client:
            loop = Background(server.serve_forever, 0.01)
            other.sendall(b"wait\n")
            assert other.recv(100) == b"waits\n"
            client.sendall(b"close\n")
            assert client.recv(100) == b"1\n"
            client.sendall(b"still here\n")
            assert receive(client) == b"still here\n"
            server.shutdown()
            with contextlib.suppress(OSError):  # half a second was over
                loop.result()


def test_another_thread_that_closes_waits_for_the_handlers(fastsock: Any) -> None:
    def handle(handler: Any) -> None:
        for line in handler.rfile:
            handler.wfile.write(line)

    with start(fastsock, handle) as server, serving(server) as loop, connect(server) as client:
        client.sendall(b"ready\n")
        assert client.recv(100) == b"ready\n"
        server.shutdown()
        closing = Background(server.server_close)
        wait_until(lambda: waiting(server))
        for number in range(100):
            client.sendall(b"%d\n" % number)
            assert client.recv(100) == b"%d\n" % number
        assert closing.is_alive()
        client.close()
        closing.result()
        loop.result()


class Failing(multiplexing.MultiplexingTCPServer):
    """Its loop is left by an exception when it is told so."""

    daemon_threads = True
    fails = False

    def service_actions(self) -> None:
        if self.fails:
            self.fails = False
            raise Stop


def test_nobody_waits_for_the_handlers_of_a_loop_that_has_failed(fastsock: Any) -> None:
    """They can't go on. Its thread may still end them."""
    unwound = []
    closed = threading.Event()

    def handle(handler: Any) -> None:
        handler.wfile.write(b"ready\n")
        try:
            handler.rfile.readline()
        finally:
            unwound.append(True)

    server = new("Server", Failing, daemon_threads=False)(
        ("127.0.0.1", 0), handling(fastsock, handle)
    )

    def serve() -> None:
        with pytest.raises(Stop):
            server.serve_forever(0.002)
        assert closed.wait(TIMEOUT)
        assert not unwound
        server.daemon_threads = True
        server.server_close()

    with connect(server) as client:
        loop = Background(serve)
        assert client.recv(100) == b"ready\n"
        closing = Background(server.server_close)
        wait_until(lambda: waiting(server))
        server.fails = True
        closing.result()
        closed.set()
        loop.result()
        assert receive(client) == b""
    assert unwound


def test_handlers_that_an_earlier_loop_has_left_are_ended_by_its_thread(fastsock: Any) -> None:
    """Though another thread has served since."""
    trace = []

    def handle(handler: Any) -> None:
        handler.wfile.write(b"ready\n")
        try:
            handler.wfile.write(handler.rfile.readline())
        finally:
            trace.append(threading.current_thread())

    server = Failing(("127.0.0.1", 0), handling(fastsock, handle))
    with connect(server) as left:

        def fail() -> None:
            assert left.recv(100) == b"ready\n"
            server.fails = True

        failing = Background(fail)
        with pytest.raises(Stop):
            server.serve_forever(0.002)
        failing.result()
        with serving(server) as loop, connect(server) as client:
            assert client.recv(100) == b"ready\n"
            client.sendall(b"line\n")
            assert receive(client) == b"line\n"
        assert trace == [loop]
        server.server_close()
        assert trace == [loop, threading.current_thread()]
        assert receive(left) == b""
