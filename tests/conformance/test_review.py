"""What a review found: each of these once differed from the standard library."""

from __future__ import annotations

import copy
import functools
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    about_threads,
    connect,
    is_fastsock,
    receive,
    serving,
    upper,
    wait_until,
)

Make = Callable[..., Any]


@pytest.mark.parametrize("count", [100, 4096, 5000])
def test_a_reset_is_no_end_of_stream(ss: ModuleType, make: Make, count: int) -> None:
    """A connection's error is told by recv(), however many bytes came before it."""
    begun, gone = threading.Event(), threading.Event()
    seen: list[Any] = []

    class Handler(ss.BaseRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            begun.set()
            assert gone.wait(TIMEOUT)
            try:
                while data := self.request.recv(65536):
                    seen.append(len(data))
                seen.append("end")
            except ConnectionResetError:
                seen.append("reset")

    server = make(ss.TCPServer, Handler)
    with serving(server):
        client = connect(server)
        client.sendall(b"x" * count)
        assert begun.wait(TIMEOUT)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        gone.set()
        wait_until(lambda: seen and isinstance(seen[-1], str))
    assert seen == [count, "reset"]


@about_threads("joining a thread")
def test_a_thread_that_the_loop_has_not_woken_yet_can_be_joined(ss: ModuleType, make: Make) -> None:
    """From the loop's own thread, between a request and the next poll."""
    server = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
    joined: list[bool] = []

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        if frame.f_code.co_name == "service_actions":
            for thread in list(vars(server).get("_threads", ())):
                thread.join(TIMEOUT / 4)
                joined.append(not thread.is_alive())

    def serve() -> None:
        sys.settrace(trace)
        server.serve_forever(0.05)

    loop = Background(serve)
    clients = []
    for _ in range(6):
        clients.append(connect(server))
        clients[-1].sendall(b"hello\n")
        assert receive(clients[-1]) == b"HELLO\n"
    server.shutdown()
    loop.join()
    for client in clients:
        client.close()
    assert joined and all(joined)


def test_a_copy_has_a_stop_flag_of_its_own(ss: ModuleType, make: Make) -> None:
    one = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
    other = copy.copy(one)
    other.socket = socket.create_server(("127.0.0.1", 0))
    other._BaseServer__is_shut_down = threading.Event()
    try:
        with serving(other), serving(one):
            one.shutdown()
            with socket.create_connection(other.socket.getsockname(), TIMEOUT) as client:
                client.sendall(b"still there\n")
                assert receive(client) == b"STILL THERE\n"
    finally:
        other.server_close()


@about_threads("thread names")
def test_the_name_of_a_thread_whose_target_has_none(ss: ModuleType, make: Make) -> None:
    names: list[str] = []

    class Handler(ss.BaseRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            names.append(threading.current_thread().name)

    server = make(ss.ThreadingTCPServer, Handler)
    server.process_request_thread = functools.partial(server.process_request_thread)
    with serving(server), connect(server) as client:
        assert receive(client) == b""
    (name,) = names
    assert name.startswith("Thread-") and "(" not in name


@about_threads("its handlers wait for each other in a threading.Barrier")
@pytest.mark.parametrize("limit", [0, -1, "8"])
def test_an_attribute_of_the_program(ss: ModuleType, make: Make, limit: Any) -> None:
    """max_threads is fastsock's own name: a program's may mean something else."""
    together = threading.Barrier(2)

    class Handler(ss.StreamRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            together.wait(TIMEOUT)
            self.wfile.write(b"ok")

    server = make(ss.ThreadingTCPServer, Handler, max_threads=limit, thread_idle_timeout=None)
    with serving(server), connect(server) as one, connect(server) as other:
        assert receive(one) == receive(other) == b"ok"


def test_the_newest_child_is_not_collected(ss: ModuleType, make: Make) -> None:
    """After handle_request() a program finds the child, and may wait for it itself."""
    server = make(ss.ForkingTCPServer, ss.BaseRequestHandler)
    close_request = server.close_request

    def close_and_wait(request: Any) -> None:
        close_request(request)
        for pid in server.active_children or ():
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # ended, and still there

    server.close_request = close_and_wait
    for _ in range(3):
        with connect(server):
            server.handle_request()
        (pid,) = server.active_children
        assert os.waitpid(pid, 0)[0] == pid
        server.active_children.clear()


def test_children_are_collected_by_handle_request_too(ss: ModuleType, make: Make) -> None:
    """In fastsock with the next request, in the standard library when none came in time."""
    server = make(ss.ForkingTCPServer, ss.BaseRequestHandler, timeout=0)
    for _ in range(3):
        with connect(server):
            server.handle_request()
        for pid in server.active_children:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert len(server.active_children) == (1 if is_fastsock(ss) else 3)
    server.handle_request()
    assert server.active_children == set()
