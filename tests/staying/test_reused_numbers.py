"""A thread that is about to wait for a connection while another one takes it away.

The other thread runs when the first gives the GIL up for its call, and a socket that has got the
number is there before that call. ``ci/soak torture --kind threading`` does it at random.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from living import Living
from support import TIMEOUT, wait_until

ROUNDS = 30
NUMBER = 1 << 400_000  # multiplied it takes longer than a switch interval, and nobody switches


@pytest.fixture(autouse=True)
def short_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("way", ["detached", "closed"])
@pytest.mark.parametrize(("name", "argument"), [("recv", 7), ("sendall", bytes(1 << 20))])
def test_nobody_elses_bytes(
    live: Callable[..., Living], name: str, argument: Any, way: str, handed_over: bool
) -> None:
    taken: list[Any] = []
    begins = threading.Event()

    def handle(handler: Any) -> None:
        request = handler.request
        if handed_over:
            request.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        about_to = [False]
        call = getattr(request, name)
        taken[:] = [request, about_to]
        begins.set()
        handler.rfile.readline()
        try:
            product = NUMBER * NUMBER
            about_to[0] = True
            call(argument)  # the interpreter looks for who wants the GIL behind a call, not before
            del product
        except OSError:
            pass

    living = live("threading", handle, "UnixStream", handle_error=lambda *arguments: None)
    for _ in range(ROUNDS):
        inner, outer = socket.socketpair()
        spare = inner.dup()  # keeps it open
        with inner, outer, spare, living.connect() as client:
            outer.send(b"for nobody")
            assert begins.wait(TIMEOUT)
            begins.clear()
            request, about_to = taken
            number = request.fileno()
            client.sendall(b"\n")
            while not about_to[0]:
                pass
            if way == "detached":
                request.detach()
            else:
                request._real_close()
            os.dup2(spare.fileno(), number)
            client.close()
            wait_until(lambda: not living.server.connections)
            wait_until(lambda: living.server.stats().threads_busy == 0)
            os.close(number)
            outer.setblocking(False)
            with pytest.raises(BlockingIOError):
                assert outer.recv(1 << 20) is None
            assert inner.recv(100) == b"for nobody"
