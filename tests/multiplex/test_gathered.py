"""Small writes that a hub gathers: when they must have left, though the handler does not wait."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, connect, handling, receive, serving, wait_until

from fastsock import multiplexing


def seen(client: socket.socket) -> bytes:
    """What has come, asked by a handler that lets nobody run."""
    return client.recv(100) if select.select([client], [], [], 2)[0] else b""


@pytest.mark.parametrize("wbufsize", [0, -1, 3])
@pytest.mark.parametrize("past_it", [False, True])
def test_flush(fastsock_dir: str | None, time_limit: None, wbufsize: int, past_it: bool) -> None:
    found = []

    def handle(handler: Any) -> None:
        handler.rfile.readline()
        if past_it:
            handler.request.sendall(b"ab")
        else:
            handler.wfile.write(b"a")
            handler.wfile.write(b"b")
        handler.wfile.flush()
        found.append(seen(client))

    fastsock = module_of("multiplexing", fastsock_dir)
    handler_class = handling(fastsock, handle, wbufsize=wbufsize)
    with multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), handler_class) as server:
        with serving(server), connect(server) as client:
            client.sendall(b"go\n")
            wait_until(lambda: found)
            assert receive(client) == b""
    assert found == [b"ab"]


def test_a_fork(fastsock_dir: str | None, time_limit: None) -> None:
    """What was written before it leaves before what the child writes, and once."""

    def handle(handler: Any) -> None:
        handler.wfile.write(b"before ")
        pid = os.fork()
        if pid == 0:
            try:
                handler.request.sendall(b"child ")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        handler.wfile.write(b"after")

    fastsock = module_of("multiplexing", fastsock_dir)
    handler_class = handling(fastsock, handle)
    with multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), handler_class) as server:
        with serving(server), connect(server) as client:
            assert receive(client) == b"before child after"


def test_a_fork_by_another_thread(fastsock_dir: str | None, time_limit: None) -> None:
    """What a task holds back at that moment is not the child's to send."""
    requests: list[Any] = []
    forked = threading.Event()

    def handle(handler: Any) -> None:
        handler.wfile.write(b"held")
        requests.append(handler.request)
        assert forked.wait(TIMEOUT)  # the loop is held, so nothing is sent

    fastsock = module_of("multiplexing", fastsock_dir)
    handler_class = handling(fastsock, handle)
    with multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), handler_class) as server:
        with serving(server), connect(server) as client:
            wait_until(lambda: requests)
            pid = os.fork()
            if pid == 0:
                try:
                    requests[0].sendall(b"child ")
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            forked.set()
            requests.clear()
            assert receive(client) == b"child held"
