"""server.drain(): accept nothing more, let requests end, and cut off what is left at a deadline."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest
from living import LATE, Living, echo, until_end
from support import TIMEOUT, Background, connect, wait_until

Live = Callable[..., Living]
KEEPS_TRACK = ("sync", "threading", "multiplexing")  # of connections, unlike a parent process


def waits(handler: Any) -> None:
    """One line, answered when the gate is open."""
    line = handler.rfile.readline()
    handler.gate.wait()
    handler.wfile.write(line.upper())


def answers(handler: Any) -> None:
    handler.wfile.write(handler.rfile.readline().upper())


def has_come(client: socket.socket) -> bool:
    """Whether the server's kernel has all that was sent."""
    count = fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(count, sys.byteorder) == 0


def test_what_runs_finishes(live: Live, flavour: str) -> None:
    living = live(flavour, waits)
    client = living.connect(b"hello\n")
    living.gate.await_one()
    draining = living.drain_beside()
    if flavour in ("threading", "multiplexing"):  # children have copies of the listener
        wait_until(lambda: living.server.socket.fileno() < 0)
        wait_until(living.is_refused)  # close(2) comes right after
    assert draining.is_alive()
    living.gate.open()
    report, _ = draining.result()
    assert until_end(client) == b"HELLO\n"
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)
    assert living.is_refused()
    living.loop.result()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("flavour", "attributes"),
    [("sync", {}), ("threading", {"max_threads": 1}), ("forking", {"max_children": 1})],
)
def test_the_backlog_is_served(live: Live, flavour: str, attributes: dict[str, Any]) -> None:
    living = live(flavour, waits, **attributes)
    clients = [living.connect(b"hello %d\n" % number) for number in range(20)]
    living.gate.await_one()
    draining = living.drain_beside()
    living.gate.open()
    report, _ = draining.result()
    assert [until_end(client) for client in clients] == [b"HELLO %d\n" % n for n in range(20)]
    assert (report.finished, report.idle_closed, report.cut_off) == (20, 0, 0)
    assert living.is_refused()


def test_however_long_the_backlog_is(live: Live) -> None:
    living = live("sync", waits)
    clients = [living.connect(b"hello %d\n" % number) for number in range(120)]
    living.gate.await_one()
    draining = living.drain_beside()
    living.gate.open()
    report, _ = draining.result()
    assert [until_end(client) for client in clients] == [b"HELLO %d\n" % n for n in range(120)]
    assert (report.finished, report.idle_closed, report.cut_off) == (120, 0, 0)


def test_what_had_ended_before_does_not_count(live: Live, flavour: str) -> None:
    living = live(flavour, answers)
    for _ in range(3):
        assert until_end(living.connect(b"hello\n")) == b"HELLO\n"
    wait_until(lambda: living.server._fastsock.ledger.active == 0)
    report, _ = living.drain(TIMEOUT)
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 0)


@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_one_that_was_idle_and_does_not_end_is_cut_off(live: Live, flavour: str) -> None:
    def handle(handler: Any) -> None:
        echo(handler)
        handler.gate.wait()

    living = live(flavour, handle)
    client = living.connect()
    assert living.ask(client, b"hello\n") == b"hello\n"
    living.await_state("idle")
    draining = living.drain_beside(0.3)
    living.gate.await_one()
    report, _ = draining.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 1)


def test_who_is_interrupted_cuts_off_what_is_left(live: Live) -> None:
    living = live("threading", answers)
    client = living.connect()
    living.await_active(1)

    def interrupt() -> None:
        wait_until(lambda: living.server._fastsock.draining)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = Background(interrupt)
    with pytest.raises(KeyboardInterrupt):
        living.server.drain()
    interrupting.result()
    assert until_end(client) == b""
    # A poll(2) that has not returned yet keeps what was closed open.
    wait_until(living.is_refused)


@pytest.mark.parametrize("transport", ["TCP", "UnixStream"])
@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_idle_connections_are_closed(live: Live, flavour: str, transport: str) -> None:
    living = live(flavour, echo, transport)
    clients = [living.connect() for _ in range(1 if flavour == "sync" else 5)]
    for client in clients:
        assert living.ask(client, b"hello\n") == b"hello\n"
    living.await_state("idle", len(clients))
    report, seconds = living.drain(TIMEOUT)
    assert [until_end(client) for client in clients] == [b""] * len(clients)
    assert (report.finished, report.idle_closed, report.cut_off) == (0, len(clients), 0)
    assert seconds < TIMEOUT / 4


@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_what_becomes_idle_is_closed(live: Live, flavour: str) -> None:
    living = live(flavour, echo)
    client = living.connect(b"wait\n")
    living.gate.await_one()
    draining = living.drain_beside(TIMEOUT)
    living.gate.open()
    report, seconds = draining.result()
    assert until_end(client) == b"wait\n"
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)
    assert seconds < TIMEOUT / 4


@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_what_was_sent_before_is_still_answered(live: Live, flavour: str) -> None:
    """A next message that has come already is served, though its connection is to be closed."""

    def handle(handler: Any) -> None:
        while line := handler.request.recv(100):
            if line == b"wait\n":
                handler.gate.wait()
            handler.request.sendall(line)

    living = live(flavour, handle)
    client = living.connect(b"wait\n")
    living.gate.await_one()
    draining = living.drain_beside(TIMEOUT)
    client.sendall(b"more\n")
    wait_until(lambda: has_come(client))  # what is on its way is nobody's yet
    living.gate.open()
    draining.result()
    assert until_end(client) == b"wait\nmore\n"
    assert living.server.stats().failed == 0


@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_the_rest_of_a_line_is_waited_for(live: Live, flavour: str) -> None:
    """Though the line before it, with which the first part has come, was answered."""
    living = live(flavour, echo)
    client = living.connect(b"wait\nhalf a")
    living.gate.await_one()
    draining = living.drain_beside(TIMEOUT)
    living.gate.open()
    assert client.recv(100) == b"wait\n"
    living.await_state("reading")
    client.sendall(b" line\n")
    assert until_end(client) == b"half a line\n"
    report, _ = draining.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)


def test_one_that_has_sent_nothing_has_until_the_deadline(live: Live, flavour: str) -> None:
    living = live(flavour, answers)
    client = living.connect()
    living.await_active(1)
    wait_until(lambda: flavour != "forking" or living.server.active_children)
    report, seconds = living.drain(0.3)
    assert 0.3 <= seconds <= 0.3 + LATE
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 1)
    assert until_end(client) == b""


def test_one_that_has_sent_nothing_may_send_it(live: Live, flavour: str) -> None:
    living = live(flavour, answers)
    client = living.connect()
    living.await_active(1)
    draining = living.drain_beside(TIMEOUT)
    client.sendall(b"hello\n")
    assert until_end(client) == b"HELLO\n"
    report, _ = draining.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)


@pytest.mark.parametrize("raw", [False, True])
def test_the_rest_of_a_message_is_waited_for(live: Live, flavour: str, raw: bool) -> None:
    """Nothing of it is in a buffer, and yet it is no next message: nothing was answered."""

    def handle(handler: Any) -> None:
        if raw:
            found = handler.request.recv(5) + handler.request.recv(4)
        else:
            found = handler.rfile.readline() + handler.rfile.read(4)
        handler.wfile.write(found)

    living = live(flavour, handle)
    client = living.connect(b"head\n")
    if flavour == "forking":
        wait_until(lambda: living.server.active_children)
    else:
        wait_until(lambda: [one for one in living.server.connections if one.bytes_in])
        living.await_state("idle")
    draining = living.drain_beside(TIMEOUT)
    client.sendall(b"body")
    assert until_end(client) == b"head\nbody"
    report, _ = draining.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)


def test_what_is_stuck_is_left_at_the_deadline(live: Live, flavour: str) -> None:
    """In something that is no connection: drain() does not wait for it."""
    living = live(flavour, waits)
    client = living.connect(b"hello\n")
    living.gate.await_one()
    report, seconds = living.drain(0.3)
    assert 0.3 <= seconds <= 0.3 + LATE
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 1)
    assert until_end(client) == b""
    wait_until(living.is_refused)  # by a child's copy of the listener, too


def test_greenlets_are_unwound_at_the_deadline(live: Live) -> None:
    pytest.importorskip("greenlet")
    unwound = []

    def handle(handler: Any) -> None:
        try:
            handler.gate.wait()
        except BaseException as error:
            unwound.append(type(error).__name__)
            raise

    living = live("multiplexing", handle)
    living.connect()
    living.gate.await_one()
    living.drain(0.1)
    assert unwound == ["GreenletExit"]
    living.loop.result()  # type: ignore[union-attr]


def test_who_waits_for_its_connection_is_not_unwound_but_finds_its_end(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("greenlet")
    found = []
    living = live("multiplexing", lambda handler: found.append(handler.rfile.read()))
    monkeypatch.setattr(importlib.import_module("fastsock._drain"), "MOMENT", TIMEOUT)
    living.connect()
    living.await_active(1)
    living.drain(0.1)
    assert found == [b""]


def test_greenlets_of_a_daemon_server_have_their_time(live: Live) -> None:
    """Its loop would unwind them at once."""
    pytest.importorskip("greenlet")
    living = live("multiplexing", waits, daemon_threads=True)
    client = living.connect(b"hello\n")
    living.gate.await_one()
    draining = living.drain_beside()
    wait_until(lambda: living.server.socket.fileno() < 0)
    living.gate.open()
    assert until_end(client) == b"HELLO\n"
    assert draining.result()[0].finished == 1


def test_children_get_sigterm(live: Live) -> None:
    living = live("forking", waits)
    living.connect(b"hello\n")
    living.gate.await_one()
    wait_until(lambda: living.server.active_children)  # the child may be faster than its parent
    (child,) = living.server.active_children
    report, _ = living.drain(0.1)
    assert (report.finished, report.cut_off) == (0, 1)

    def is_collected() -> bool:
        living.server.collect_children()  # it may have taken longer than drain() waits for it
        return child not in living.server.active_children

    wait_until(is_collected)
    stats = living.server.stats()
    assert (stats.active, stats.failed, stats.children) == (0, 1, 0)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"daemon_threads": True},
        {"reuse_threads": False},
        {"daemon_threads": True, "reuse_threads": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("transport", ["UDP", "UnixDatagram"])
def test_datagrams_that_have_come_are_served(
    live: Live, flavour: str, transport: str, attributes: dict[str, Any]
) -> None:
    served: Any = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def handle(handler: Any) -> None:
        served[1].send(handler.request[0])
        handler.gate.wait()

    living = live(flavour, handle, transport, **attributes)
    with served[0], served[1]:
        client = living.connect()
        for number in range(5):
            client.send(b"%d" % number)
        living.gate.await_one()
        draining = living.drain_beside()
        draining.join(0.02)
        assert draining.is_alive()
        living.gate.open()
        report, _ = draining.result()
        found = sorted(served[0].recv(10) for _ in range(5))
        assert found == [b"%d" % number for number in range(5)]
        assert (report.finished, report.idle_closed, report.cut_off) == (5, 0, 0)
        assert living.server.socket.fileno() == -1


@pytest.mark.parametrize("transport", ["UDP", "UnixDatagram"])
def test_datagrams_may_be_answered_when_the_loop_has_ended(live: Live, transport: str) -> None:
    def handle(handler: Any) -> None:
        handler.gate.wait()
        handler.request[1].sendto(handler.request[0], handler.client_address)

    living = live("threading", handle, transport)
    client = living.connect(b"hello")
    living.gate.await_one()
    draining = living.drain_beside()
    wait_until(lambda: not living.server._fastsock.is_served)
    living.gate.open()
    assert client.recv(10) == b"hello"
    assert draining.result()[0].finished == 1


def test_a_datagram_that_is_stuck_is_cut_off(live: Live, flavour: str) -> None:
    living = live(flavour, lambda handler: handler.gate.wait(), "UDP")
    living.connect(b"hello")
    living.gate.await_one()
    report, _ = living.drain(0.2)
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 1)


def test_without_a_loop_the_backlog_is_served_too(live: Live, flavour: str) -> None:
    living = live(flavour, answers, serves=False)
    clients = [living.connect(b"hello\n") for _ in range(3)]
    report, _ = living.drain(TIMEOUT)
    assert [until_end(client) for client in clients] == [b"HELLO\n"] * 3
    assert (report.finished, report.idle_closed, report.cut_off) == (3, 0, 0)
    assert living.is_refused()


def test_without_a_loop_the_deadline_holds(live: Live, flavour: str) -> None:
    living = live(flavour, waits, serves=False)
    client = living.connect(b"hello\n")
    report, seconds = living.drain(0.2)
    assert 0.2 <= seconds <= 0.2 + LATE
    assert report.cut_off == 1
    assert until_end(client) == b""


def test_with_nothing_to_do_it_returns_at_once(live: Live, flavour: str) -> None:
    for serves in (True, False):
        living = live(flavour, answers, serves=serves)
        report, seconds = living.drain()
        assert (report.finished, report.idle_closed, report.cut_off) == (0, 0, 0)
        assert seconds < 1
        assert living.is_refused()
        assert living.server.drain() == report  # once more, closed


def test_a_loop_of_the_program_s_own_is_ended(live: Live) -> None:
    """It only knows shutdown()'s flag; what it leaves in the backlog is served."""

    def own_loop(server: Any) -> None:
        server._BaseServer__is_shut_down.clear()
        try:
            while not server._BaseServer__shutdown_request:
                time.sleep(0.001)
        finally:
            server._BaseServer__shutdown_request = False
            server._BaseServer__is_shut_down.set()

    living = live("threading", answers, serves=False)
    loop = Background(own_loop, living.server)
    wait_until(lambda: living.server._BaseServer__is_shut_down.serving())
    client = living.connect(b"hello\n")
    report, _ = living.drain(TIMEOUT)
    loop.result()
    assert until_end(client) == b"HELLO\n"
    assert report.finished == 1


def test_who_would_wait_for_himself_is_told(live: Live, flavour: str) -> None:
    def handle(handler: Any) -> None:
        try:
            handler.server.drain()
        except RuntimeError as error:
            handler.wfile.write(str(error).encode())

    living = live(flavour, handle)
    assert b"fastsock.run()" in until_end(living.connect())
    assert until_end(living.connect())  # and it goes on


@pytest.mark.parametrize("attributes", [{"reuse_threads": False}, {"max_threads": 3}], ids=str)
def test_so_is_a_handler_in_a_thread_of_its_own(live: Live, attributes: dict[str, Any]) -> None:
    def handle(handler: Any) -> None:
        with pytest.raises(RuntimeError, match="drain"):
            handler.server.drain()
        handler.wfile.write(b"told")

    living = live("threading", handle, daemon_threads=True, **attributes)
    assert until_end(living.connect()) == b"told"


@pytest.mark.parametrize("flavour", ["sync", "forking", "threading", "multiplexing"])
def test_so_is_a_handler_of_handle_request(live: Live, flavour: str) -> None:
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")

    def handle(handler: Any) -> None:
        with pytest.raises(RuntimeError, match="drain"):
            handler.server.drain()
        handler.wfile.write(b"told")

    living = live(flavour, handle, serves=False)
    client = living.connect()
    living.server.handle_request()
    assert until_end(client) == b"told"


def test_so_is_a_hook_of_the_loop(live: Live) -> None:
    told = []

    def service_actions(server: Any) -> None:
        if not told:
            try:
                server.drain()
            except RuntimeError:
                told.append(True)

    living = live("threading", answers, service_actions=service_actions)
    assert until_end(living.connect(b"hello\n")) == b"HELLO\n"
    wait_until(lambda: told)


def test_two_at_a_time(live: Live) -> None:
    living = live("threading", waits)
    living.connect(b"hello\n")
    living.gate.await_one()
    patient = living.drain_beside()
    _, seconds = living.drain(0.2)
    assert 0.2 <= seconds <= 0.2 + LATE
    assert patient.is_alive()
    living.gate.open()
    patient.result()


def test_shutdown_meanwhile(live: Live) -> None:
    living = live("sync", waits)
    client = living.connect(b"hello\n")
    living.gate.await_one()
    draining = living.drain_beside()
    stopping = Background(living.server.shutdown)
    living.gate.open()
    stopping.result()
    draining.result()
    assert until_end(client) == b"HELLO\n"


def test_a_busy_server_comes_to_an_end(live: Live) -> None:
    """Though there is always somebody in the backlog."""
    more: list[socket.socket] = []

    def handle(handler: Any) -> None:
        handler.gate.wait()
        more.append(connect(handler.server))

    living = live("sync", handle)
    living.connect()
    living.gate.await_one()
    draining = living.drain_beside(5)
    living.gate.open()
    report, seconds = draining.result()
    for client in more:
        client.close()
    assert seconds < 5
    assert (len(more), report.cut_off) == (report.finished, 0)


def test_attributes_of_the_program_s_own(live: Live, flavour: str) -> None:
    """A server may have those names for something else."""
    others = {"drain": 5, "close_timeout": "never", "lingering_close": "no", "connections": {}}
    living = live(flavour, answers, **others)
    assert until_end(living.connect(b"hello\n")) == b"HELLO\n"
    module = living.module
    assert module.BaseServer.drain(living.server, 1.0).cut_off == 0
    assert living.is_refused()


class Room:
    """What a program mixes in, behind the server class."""

    connections = 5
    stats = overload = "full"

    def broadcast(self, sender: str, line: str) -> str:
        return sender + line

    def drain(self) -> str:
        return "nothing left"


def test_names_of_a_base_that_comes_later(live: Live, flavour: str) -> None:
    """As with the standard library, whose servers have no such names."""
    base = type(live(flavour, answers, serves=False).server)
    server: Any = type("Server", (base, Room), {})
    found = server(("127.0.0.1", 0), None)
    with found:
        assert (found.connections, found.stats, found.overload) == (5, "full", "full")
        assert found.broadcast("me", "hello") == "mehello"
        assert found.drain() == "nothing left"
        assert callable(base.drain)
        assert found.max_connections is None

    class Both(server):
        def stats(self) -> str:
            return "own"

    with Both(("127.0.0.1", 0), None) as found:
        assert (found.stats(), found.drain()) == ("own", "nothing left")


def test_children_that_have_ended_are_collected(live: Live) -> None:
    """The loop, which does so otherwise, is over."""
    living = live("forking", waits)
    clients = [living.connect(b"hello\n") for _ in range(3)]
    for _ in clients:
        living.gate.await_one()
    wait_until(lambda: len(living.server.active_children or ()) == 3)
    draining = living.drain_beside(TIMEOUT)
    living.gate.open()
    report, _ = draining.result()
    assert (report.finished, report.cut_off) == (3, 0)
    assert not living.server.active_children
    stats = living.server.stats()
    assert (stats.active, stats.finished, stats.failed) == (0, 3, 0)


@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_the_body_that_an_interim_response_asks_for(live: Live, flavour: str) -> None:
    """RFC 9110, 10.1.1: who expects 100-continue sends the body after that."""

    def handle(handler: Any) -> None:
        handler.rfile.readline()
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + handler.rfile.read(4))

    living = live(flavour, handle)
    client = living.connect(b"head\n")
    assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    living.await_state("idle")
    draining = living.drain_beside(TIMEOUT)
    client.sendall(b"body")
    assert until_end(client) == b"HTTP/1.1 200 OK\r\n\r\nbody"
    report, _ = draining.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (1, 0, 0)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 100 Continue\r\n\r\nno", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("flavour", KEEPS_TRACK)
def test_what_is_no_interim_response(live: Live, flavour: str, answer: bytes) -> None:
    def handle(handler: Any) -> None:
        while handler.rfile.readline():
            handler.wfile.write(answer)

    living = live(flavour, handle)
    client = living.connect(b"head\n")
    assert client.recv(100) == answer
    living.await_state("idle")
    report, _ = living.drain(TIMEOUT)
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 1, 0)


def test_nothing_is_cut_off_where_nothing_runs(live: Live, flavour: str) -> None:
    """The loop has no time to end by itself."""
    living = live(flavour, answers)
    assert until_end(living.connect(b"hello\n")) == b"HELLO\n"
    wait_until(lambda: living.server.stats().active == 0)
    report, _ = living.drain(0)
    assert report.cut_off == 0


def test_a_datagram_that_is_cut_off_is_counted_as_one(live: Live) -> None:
    living = live("sync", lambda handler: handler.gate.wait(), "UDP")
    living.connect().send(b"x")
    living.gate.await_one()
    report, _ = living.drain(0.05)
    assert repr(report) == "DrainReport(finished=0, idle_closed=0, cut_off=1)"


def test_timeouts(live: Live) -> None:
    living = live("threading", answers)
    for what in ("soon", "1", float("nan")):  # a time that never comes would be none
        with pytest.raises((TypeError, ValueError)):
            living.server.drain(what)
    assert until_end(living.connect(b"hello\n")) == b"HELLO\n"
    living.connect()
    living.await_active(2)
    report, seconds = living.drain(-1)
    assert report.cut_off == 1
    assert seconds <= LATE
