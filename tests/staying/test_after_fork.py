"""A child of a plain os.fork() beside a server: what the parent serves is left alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from living import Living, echo
from support import wait_until

Live = Callable[..., Living]
flavours = pytest.mark.parametrize("flavour", ["sync", "threading", "multiplexing"])


def in_child(function: Callable[[], object]) -> None:
    """Run it there; AssertionError if it fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # of pytest's, if it has one
        signal.alarm(15)
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    wait_until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@flavours
def test_nothing_of_the_parent_is_ended_or_sent_to(live: Live, flavour: str) -> None:
    living = live(flavour, echo)
    client = living.connect()
    assert living.ask(client, b"one\n") == b"one\n"
    living.await_state("idle")
    [known] = living.server.connections

    def child() -> None:
        known.close()
        assert living.server.broadcast(b"from another process\n").sent == 0
        with pytest.raises(RuntimeError):
            living.server.drain(0)  # the parent's loop
        assert living.server.connections == []
        assert living.server.stats().active == 0

    in_child(child)
    assert living.ask(client, b"two\n") == b"two\n"
    assert living.server.stats().active == 1
    known.close()
    assert client.recv(10) == b""


def test_a_child_that_serves_has_the_limits_for_itself(live: Live) -> None:
    """And counts what it serves itself."""
    living = live("sync", echo)
    client = living.connect()
    assert living.ask(client, b"one\n") == b"one\n"
    living.await_state("idle")

    def child() -> None:
        server: Any = type(living.server)(("127.0.0.1", 0), living.handler, False)
        # A copy of the parent's, with a listener of its own.
        server.server_bind()
        server.server_activate()
        living.server.socket = server.socket
        living.server.max_connections = 1
        threading.Thread(target=lambda: serve(server.server_address), daemon=True).start()
        for _ in range(2):
            living.server.handle_request()
        assert (living.server.stats().active, seen) == (0, [b"hello\n"] * 2)

    def serve(address: Any) -> None:
        for _ in range(2):
            with socket.create_connection(address, 10) as other:
                other.sendall(b"hello\n")
                seen.append(other.recv(100))

    seen: list[bytes] = []
    in_child(child)
    assert living.ask(client, b"two\n") == b"two\n"
