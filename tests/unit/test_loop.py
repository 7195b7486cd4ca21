"""The serve loop of the core: waking, stopping, re-reading, several servers. fastsock only."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import TIMEOUT, ask, connect, receive, upper, wait_until

import fastsock

LOCAL = ("127.0.0.1", 0)
UPPER = upper(fastsock.StreamRequestHandler)


@contextmanager
def serving(server: Any, **arguments: Any) -> Iterator[threading.Thread]:
    """Serve in a thread; what leaves the loop is the thread's attribute `error`."""
    begun = threading.Event()

    def run() -> None:
        try:
            begun.set()
            server.serve_forever(**arguments)
        except BaseException as error:
            thread.error = error  # type: ignore[attr-defined]

    thread = threading.Thread(target=run)
    thread.error = None  # type: ignore[attr-defined]
    with server:
        thread.start()
        assert begun.wait(TIMEOUT)
        try:
            yield thread
        finally:
            server.shutdown()
            thread.join(TIMEOUT)
            assert not thread.is_alive()


class Counting(fastsock.TCPServer):
    """Counts the wake-ups of its loop, each of which reads the descriptor."""

    wakeups = 0
    actions = 0

    def fileno(self) -> int:
        self.wakeups += 1
        return super().fileno()

    def service_actions(self) -> None:
        self.actions += 1


def test_the_loop_sleeps_when_nothing_happens() -> None:
    server = Counting(LOCAL, UPPER)
    with serving(server, poll_interval=None):
        assert ask(server) == b"HELLO\n"
        wait_until(lambda: server.actions == 1)
        before = server.wakeups
        time.sleep(0.3)  # the time in which nothing may happen
        assert server.wakeups <= before + 1  # it may have been about to sleep
        assert server.actions == 1


def test_the_loop_wakes_once_each_poll_interval() -> None:
    server = Counting(LOCAL, UPPER)
    with serving(server, poll_interval=0.05):
        begin = time.monotonic()
        wait_until(lambda: server.actions >= 6)
        took, wakeups = time.monotonic() - begin, server.wakeups
    assert took >= 5 * 0.05 - 0.01
    assert wakeups <= took / 0.05 + 3


def test_a_zero_interval_does_not_wait() -> None:
    server = Counting(LOCAL, UPPER)
    with serving(server, poll_interval=0):
        wait_until(lambda: server.actions > 200)


@pytest.mark.parametrize("interval", ["0.5", math.nan, math.inf, 1e10, object()])
def test_an_impossible_interval_is_refused_as_selectors_refuses_it(interval: Any) -> None:
    with fastsock.TCPServer(LOCAL, UPPER) as server:
        with pytest.raises(Exception) as ours:
            server.serve_forever(poll_interval=interval)
        with pytest.raises(Exception) as standard, fastsock._ServerSelector() as selector:
            selector.register(server, 1)
            selector.select(interval)
        assert type(ours.value) is type(standard.value)


def test_shutdown_is_prompt_however_long_the_interval() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=60) as thread:
        assert ask(server) == b"HELLO\n"
        server.shutdown()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_the_wakeup_is_closed_before_shutdown_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    ended = server._BaseServer__is_shut_down
    seen = []

    def eventfds() -> int:
        folder = "/proc/self/fd"
        links = [f"{folder}/{name}" for name in os.listdir(folder)]
        return sum("eventfd" in os.readlink(link) for link in links if os.path.lexists(link))

    def end() -> None:
        seen.append(eventfds())
        type(ended).set(ended)

    monkeypatch.setattr(ended, "set", end)
    before = eventfds()
    with serving(server):
        assert ask(server) == b"HELLO\n"
        assert eventfds() == before + 1
        server.shutdown()
    assert seen == [before]


def test_the_loop_sleeps_after_one_of_several_servers_has_stopped() -> None:
    servers = [Counting(LOCAL, UPPER) for _ in range(2)]
    thread = threading.Thread(
        target=fastsock.serve_forever, args=servers, kwargs={"poll_interval": None}
    )
    with servers[0], servers[1]:
        thread.start()
        assert ask(servers[0]) == ask(servers[1]) == b"HELLO\n"
        servers[0].shutdown()
        assert ask(servers[1]) == b"HELLO\n"
        wait_until(lambda: servers[1].actions == 2)
        before = servers[1].wakeups
        time.sleep(0.1)  # the time in which nothing may happen
        assert servers[1].wakeups <= before + 1
        servers[1].shutdown()
        thread.join(TIMEOUT)


def test_assigning_the_private_flag_wakes_the_loop() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=None) as thread:
        assert ask(server) == b"HELLO\n"
        server._BaseServer__shutdown_request = True
        thread.join(TIMEOUT)
        assert not thread.is_alive()
        assert server._BaseServer__shutdown_request is False


def test_a_child_does_not_wake_its_parent() -> None:
    server = Counting(LOCAL, UPPER)
    with serving(server, poll_interval=None):
        assert ask(server) == b"HELLO\n"
        wait_until(lambda: server.actions == 1)
        before = server.wakeups
        for _ in range(4):  # one wake-up more may be that of the loop going to sleep
            pid = os.fork()
            if not pid:
                try:
                    server.shutdown()  # no loop runs in this process: must not wait either
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        time.sleep(0.1)  # the time in which nothing may happen
        assert server.wakeups <= before + 1
        assert ask(server) == b"HELLO\n"


def test_a_child_can_go_on_with_the_loop() -> None:
    """A handler that forks and returns in both processes."""
    pids = []

    class Splitting(fastsock.BaseRequestHandler):
        def handle(self) -> None:
            if not pids:
                pids.append(os.fork())
                # the parent stops here, the child goes on with the listener
                self.server._BaseServer__shutdown_request = bool(pids[0])
            else:
                self.request.sendall(b"from the child")
                self.server.shutdown()

    parent = os.getpid()
    with fastsock.TCPServer(LOCAL, Splitting) as server:
        with connect(server):
            try:
                server.serve_forever(poll_interval=None) if os.getpid() == parent else None
            finally:
                if os.getpid() != parent:
                    os._exit(0)
        assert ask(server) == b"from the child"
        assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0


def test_a_replaced_socket_is_served_at_the_next_wakeup() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=0.01):
        assert ask(server) == b"HELLO\n"
        old, new = server.socket, socket.create_server(LOCAL)
        server.socket, server.server_address = new, new.getsockname()
        old.close()
        assert ask(server) == b"HELLO\n"


def test_a_socket_that_is_closed_and_replaced_at_once_is_served() -> None:
    """The descriptor's number may be the same, the open file is another."""
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=0.01):
        for _ in range(20):
            server.socket.close()
            server.socket = socket.create_server(LOCAL)
            server.server_address = server.socket.getsockname()
            assert ask(server) == b"HELLO\n"


def test_a_listener_closed_under_the_loop_ends_it() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=0.01) as thread:
        assert ask(server) == b"HELLO\n"
        server.socket.close()
        thread.join(TIMEOUT)
        assert isinstance(thread.error, OSError)  # type: ignore[attr-defined]
        assert thread.error.args == (9, "Bad file descriptor")  # type: ignore[attr-defined]


def test_close_then_shutdown_ends_the_loop_quietly() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER)
    with serving(server, poll_interval=0.01) as thread:
        assert ask(server) == b"HELLO\n"
        server.server_close()
        time.sleep(0.1)  # let the loop notice first
        server.shutdown()
        thread.join(TIMEOUT)
        assert thread.error is None  # type: ignore[attr-defined]


def test_a_listener_that_does_not_listen_ends_the_loop() -> None:
    server = fastsock.TCPServer(LOCAL, UPPER, bind_and_activate=False)
    server.server_bind()
    with serving(server, poll_interval=0.01) as thread:
        thread.join(TIMEOUT)
        assert thread.error.errno == 22  # type: ignore[attr-defined]


def test_several_servers_in_one_thread() -> None:
    servers = [Counting(LOCAL, UPPER) for _ in range(3)]
    thread = threading.Thread(target=fastsock.serve_forever, args=servers)
    thread.start()
    try:
        for server in servers:
            assert ask(server) == b"HELLO\n"
        servers[1].shutdown()
        assert ask(servers[0]) == ask(servers[2]) == b"HELLO\n"
        with connect(servers[1]) as waiting:  # completed by the kernel, in the backlog
            assert not select.select([waiting], [], [], 0.05)[0]
        servers[0].shutdown()
        assert thread.is_alive()
        assert ask(servers[2]) == b"HELLO\n"
        servers[2].shutdown()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        thread.join(TIMEOUT)


def test_a_handler_replaces_the_socket_of_another_server() -> None:
    """What the poll has found there is the old one's, and nobody waits at the new one."""

    class Replacing(fastsock.StreamRequestHandler):
        def handle(self) -> None:
            second.socket = replacement
            self.wfile.write(b"replaced")

    first, second = fastsock.TCPServer(LOCAL, Replacing), fastsock.TCPServer(LOCAL, UPPER)
    replacement = socket.create_server(LOCAL)
    old = second.socket
    thread = threading.Thread(target=fastsock.serve_forever, args=(first, second))
    with first, second, old, connect(first) as client, connect(second):
        thread.start()  # both have a connection by then
        assert receive(client) == b"replaced"
        for server in (first, second):
            stopping = threading.Thread(target=server.shutdown, daemon=True)
            stopping.start()
            stopping.join(TIMEOUT / 4)
        thread.join(TIMEOUT / 4)  # shutdown() returns a moment before that has ended
        hangs = thread.is_alive()
        socket.create_connection(replacement.getsockname()).close()
        thread.join(TIMEOUT)
        assert not hangs


def test_several_servers_keep_their_own_intervals() -> None:
    busy, idle = Counting(LOCAL, UPPER), Counting(LOCAL, UPPER)
    thread = threading.Thread(
        target=fastsock.serve_forever, args=(busy, idle), kwargs={"poll_interval": 0.05}
    )
    thread.start()
    try:
        begin = time.monotonic()
        while time.monotonic() < begin + 0.5:
            assert ask(busy) == b"HELLO\n"
        assert idle.actions >= 5  # requests of the other did not put them off
    finally:
        for server in (busy, idle):
            server.shutdown()
            server.server_close()
        thread.join(TIMEOUT)


def test_an_exception_in_one_of_several_servers_ends_all() -> None:
    class Failing(fastsock.TCPServer):
        def service_actions(self) -> None:
            raise LookupError("service_actions")

    with fastsock.TCPServer(LOCAL, UPPER) as good, Failing(LOCAL, UPPER) as bad:
        with pytest.raises(LookupError):
            fastsock.serve_forever(good, bad, poll_interval=0)
        assert good._BaseServer__is_shut_down.is_set()
        assert bad._BaseServer__is_shut_down.is_set()


def test_serve_forever_of_no_server_returns() -> None:
    fastsock.serve_forever()
    with pytest.raises(TypeError):
        fastsock.serve_forever(object())  # type: ignore[arg-type]


def test_another_thread_cannot_be_waited_for_by_the_loop_it_runs_in() -> None:
    """shutdown() of a handler in the serving thread; of one in a worker thread it waits."""
    for base in (fastsock.TCPServer, fastsock.ThreadingTCPServer):

        class Stopping(fastsock.BaseRequestHandler):
            def handle(self) -> None:
                self.server.shutdown()
                self.request.sendall(b"stopped")

        server = base(LOCAL, Stopping)
        with serving(server, poll_interval=None) as thread:
            with connect(server) as client:
                assert receive(client) == b"stopped"
            thread.join(TIMEOUT)
            assert not thread.is_alive()


def test_shutdown_from_many_threads_at_once() -> None:
    for _ in range(50):
        server = fastsock.TCPServer(LOCAL, UPPER)
        with serving(server, poll_interval=None):
            stoppers = [threading.Thread(target=server.shutdown) for _ in range(4)]
            for stopper in stoppers:
                stopper.start()
            for stopper in stoppers:
                stopper.join(TIMEOUT)
                assert not stopper.is_alive()


def test_a_nested_loop_ends_alone() -> None:
    """A handler that handles the next request itself."""
    handled = []

    class Nesting(fastsock.BaseRequestHandler):
        def handle(self) -> None:
            handled.append(self.client_address)
            if len(handled) == 1:
                self.server.handle_request()
            self.request.sendall(b"done")

    server = fastsock.TCPServer(LOCAL, Nesting)
    with serving(server, poll_interval=None), connect(server) as first, connect(server) as second:
        assert receive(second) == receive(first) == b"done"
        assert ask(server, b"") == b"done"
    assert len(handled) == 3


def test_a_server_that_is_given_twice_is_served_once() -> None:
    server = Counting(LOCAL, UPPER)
    thread = threading.Thread(target=fastsock.serve_forever, args=(server, server))
    with server:
        thread.start()
        assert ask(server) == b"HELLO\n"
        server.shutdown()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_an_event_that_the_program_put_in_place_is_waited_for() -> None:
    with fastsock.TCPServer(LOCAL, UPPER) as server:
        event = server._BaseServer__is_shut_down = threading.Event()
        stopper = threading.Thread(target=server.shutdown)
        stopper.start()
        stopper.join(0.05)
        assert stopper.is_alive()
        event.set()
        stopper.join(TIMEOUT)
        assert not stopper.is_alive()


def test_a_failed_bind_tells_the_address() -> None:
    with fastsock.TCPServer(LOCAL, UPPER) as server:
        with pytest.raises(OSError) as failure:
            fastsock.TCPServer(server.server_address, UPPER)
        assert failure.value.args == (98, "Address already in use")
        assert failure.value.filename == server.server_address


def test_get_request_of_datagrams_called_by_a_subclass_cuts_them_off_too() -> None:
    class Server(fastsock.UDPServer):
        max_packet_size = 3

        def get_request(self) -> Any:
            return super().get_request()

    class Echo(fastsock.DatagramRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.packet)

    server = Server(LOCAL, Echo)
    with serving(server), connect(server) as client:
        client.send(b"datagram")
        assert receive(client) == b"dat"


def test_shutdown_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does after it has asked: the loop may have ended by then."""
    from fastsock import _servers

    server = fastsock.TCPServer(LOCAL, UPPER)
    control_of, asked = _servers._control_of, threading.current_thread()

    def slow(server: Any) -> Any:
        control = control_of(server)
        if threading.current_thread() is asked and control.stop:
            wait_until(server._BaseServer__is_shut_down.is_set)
        return control

    with serving(server):
        assert ask(server) == b"HELLO\n"
        monkeypatch.setattr(_servers, "_control_of", slow)
        server.shutdown()
        assert server._BaseServer__shutdown_request is False
