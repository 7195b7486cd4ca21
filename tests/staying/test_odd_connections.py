"""Connections of which the book of a server must not lose track, and hostile or hasty callers."""

from __future__ import annotations

import _socket
import importlib
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from living import Living, echo, until_end
from programs import Programs
from support import TIMEOUT, wait_until

Live = Callable[..., Living]


class ReturnsTheFirst:
    """A get_request() that hands out one connection again and again, and nobody closes it."""

    first: Any = None

    def get_request(self) -> Any:
        taken = super().get_request()  # type: ignore[misc]
        if self.first is None:
            self.first = taken
        else:
            taken[0].close()
        return self.first

    def shutdown_request(self, request: Any) -> None:
        pass


class OtherSocket(socket.socket):
    """No Connection."""


class ReturnsAnother(ReturnsTheFirst):
    def get_request(self) -> Any:
        request, address = super().get_request()
        if type(request) is not OtherSocket:
            request = OtherSocket(fileno=request.detach())
            self.first = request, address
        return self.first


@pytest.mark.parametrize("mixed", [ReturnsTheFirst, ReturnsAnother])
def test_a_connection_is_taken_again_while_it_is_served(live: Live, mixed: Any) -> None:
    living = live("threading", lambda handler: handler.gate.wait(), mixed=(mixed,))
    for _ in range(3):
        living.connect()
        living.gate.await_one()
    ledger = living.server._fastsock.ledger
    assert (ledger.accepted, ledger.active) == (3, 1)
    assert len(living.server.connections) == 1
    living.gate.open()
    living.drain(TIMEOUT)
    stats = living.server.stats()
    assert (stats.active, stats.finished) == (0, 3)
    request, _ = living.server.first
    request.close()


def refusing(*about: Any) -> bool:
    return False


def failing(*about: Any) -> Any:
    raise ValueError


def over(stats: Any) -> int:
    return int(stats.finished + sum(stats.refused.values()))


@pytest.mark.parametrize(
    "attributes",
    [{"verify_request": refusing}, {"process_request": failing}, {}],
    ids=["refused", "not begun", "failed"],
)
def test_a_request_that_is_not_served_has_ended(live: Live, attributes: dict[str, Any]) -> None:
    """Also if it is no Connection, and somebody keeps it."""

    def handle_error(server: Any, *about: Any) -> None:
        pass

    living = live("sync", failing, mixed=(ReturnsAnother,), handle_error=handle_error, **attributes)
    for count in (1, 2):
        living.connect()
        wait_until(lambda count=count: over(living.server.stats()) == count)  # type: ignore[misc]
        assert living.server.stats().active == 0
    living.server.first[0].close()


@pytest.mark.parametrize("how", [_socket.socket.close, _socket.socket.detach])
def test_the_number_of_a_connection_is_somebody_else_s(live: Live, how: Any) -> None:
    """Closed, or given away, by a method that is not the connection's."""

    def handle(handler: Any) -> None:
        handler.request.getpeername()  # from here on the socket object has the descriptor
        number = handler.request.fileno()
        client, ours = socket.socketpair()
        with client, ours:
            if how is _socket.socket.close:
                how(handler.request)
            else:
                socket.close(how(handler.request))
            other = socket.socket(fileno=socket.dup(ours.fileno()))  # the lowest number is free
            with other:
                found.append(other.fileno() == number)
                for one in handler.server.connections:
                    one.close()
                other.sendall(b"x")
                found.append(client.recv(1))

    found: list[Any] = []
    living = live("sync", handle)
    living.connect()
    wait_until(lambda: len(found) == 2)
    assert found == [True, b"x"]


def test_who_is_refused_does_not_keep_the_loop(live: Live) -> None:
    """There is no reply which a lingering close could lose."""
    living = live("threading", echo, max_connections=1, overload="reject", lingering_close=True)
    first = living.connect()
    assert living.ask(first, b"hello\n") == b"hello\n"
    for _ in range(3):
        client = living.connect()
        client.settimeout(1.0)
        assert client.recv(1) == b""


@pytest.mark.parametrize("flavour", ["sync", "threading", "multiplexing"])
def test_lingering_until_a_silent_peer_closes(
    live: Live, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More has come than was read: without it the reply would be lost."""

    def handle(handler: Any) -> None:
        handler.rfile.readline()
        handler.wfile.write(b"reply\n")

    def drop(descriptor: int, most: int) -> int:
        found.append(ending.drop(descriptor, most))
        return int(found[-1])

    found: list[int] = []
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    living = live(flavour, handle, lingering_close=True)
    linger = importlib.import_module("fastsock._linger")
    ending: Any = linger._ending
    mine = SimpleNamespace(drop=drop, may_have_replied=ending.may_have_replied)
    monkeypatch.setattr(linger, "_ending", mine)
    client = living.connect(b"hello\n")
    assert until_end(client) == b"reply\n"
    wait_until(lambda: found == [-1])  # it waits for more
    client.sendall(b"late")  # it is not reset yet
    client.sendall(b"later")
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: living.server.stats().active == 0)
    assert until_end(client) == b""
    assert errors == []
    assert living.loop is not None and living.loop.is_alive()


def test_drain_as_a_thread_s_target(live: Live, flavour: str) -> None:
    living = live(flavour, echo)
    thread = threading.Thread(target=living.server.drain, args=(TIMEOUT,))
    thread.start()
    thread.join(TIMEOUT)
    assert living.is_refused()


def test_a_signal_before_the_loop_has_begun(programs: Programs) -> None:
    found = programs.run_script(
        """
        import os, signal, threading
        import fastsock

        class Server(fastsock.TCPServer):
            def serve_forever(self, poll_interval=0.5):
                os.kill(os.getpid(), signal.SIGTERM)
                while self.socket.fileno() >= 0:  # a drain closes it
                    threading.Event().wait(0.001)
                super().serve_forever(poll_interval)

        server = Server(("127.0.0.1", 0), fastsock.BaseRequestHandler)
        print(fastsock.run(server))
        """
    )
    assert found.status == 0, found.err
    assert found.out == "DrainReport(finished=0, idle_closed=0, cut_off=0)\n"


def test_a_signal_before_the_loop_is_begun(programs: Programs) -> None:
    """It is not begun."""
    found = programs.run_script(
        """
        import os, signal
        import fastsock

        def getsignal(number):
            if number == signal.SIGTERM:  # the function for SIGINT is there already
                os.kill(os.getpid(), signal.SIGINT)
            return before(number)

        server = fastsock.TCPServer(("127.0.0.1", 0), fastsock.BaseRequestHandler)
        before, signal.getsignal = signal.getsignal, getsignal
        print(fastsock.run(server), server.fileno())
        """
    )
    assert found.status == 0, found.err
    assert found.out == "DrainReport(finished=0, idle_closed=0, cut_off=0) -1\n"


def test_another_error_before_the_loop_has_begun(programs: Programs) -> None:
    found = programs.run_script(
        """
        import fastsock

        server = fastsock.TCPServer(("127.0.0.1", 0), fastsock.BaseRequestHandler)
        server.server_close()
        try:
            fastsock.run(server)
        except ValueError as error:
            print(error)
        """
    )
    assert found.out == "Invalid file descriptor: -1\n", found.err


def test_one_that_is_unwound_is_not_idle_any_more(live: Live) -> None:
    """Its handler works, and is not waiting for a message of which nothing has come."""
    pytest.importorskip("greenlet")
    states: list[str] = []

    def handle(handler: Any) -> None:
        try:
            handler.rfile.readline()
        finally:
            states.extend(one.state for one in handler.server.connections)

    living = live("multiplexing", handle, daemon_threads=True)
    living.connect()
    living.await_state("idle")
    living.server.shutdown()
    wait_until(lambda: states)
    assert states == ["working"]
