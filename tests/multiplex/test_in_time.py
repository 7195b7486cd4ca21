"""What has come in time counts, however late the loop looks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from support import TIMEOUT, connect, receive, wait_until
from talks import Served

import fastsock

Serve = Callable[..., Served]


def test_a_timeout_that_is_over_while_another_holds_the_loop(serve: Serve) -> None:
    """The line was there before."""
    timeout = 0.3
    waiting, holding = threading.Event(), threading.Event()
    go_on = threading.Event()

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"hold\n":
            holding.set()
            assert go_on.wait(TIMEOUT)  # the thread
            return
        self.connection.settimeout(timeout)
        waiting.set()
        self.wfile.write(self.rfile.readline())

    served = serve(handle, slow_handler_threshold=TIMEOUT)
    client = served.connect(b"wait\n")
    assert waiting.wait(TIMEOUT)
    since = time.monotonic()
    served.connect(b"hold\n")
    assert holding.wait(TIMEOUT)
    client.sendall(b"in time\n")
    in_time = time.monotonic() - since < timeout
    wait_until(lambda: time.monotonic() - since > 2 * timeout)
    go_on.set()
    assert receive(client) == b"in time\n" or not in_time


def test_handle_request_that_does_not_wait(time_limit: None) -> None:
    """Beside a handler that is suspended, a request that is there is taken."""
    late = []

    class Handler(fastsock.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline())

    class Server(fastsock.MultiplexingTCPServer):
        timeout = 0
        daemon_threads = True

        def handle_timeout(self) -> None:
            late.append(self)

    def alive() -> bool:
        server.handle_request()
        return len(vars(server)["_fastsock_tasks"].running) == wanted

    with Server(("127.0.0.1", 0), Handler) as server:
        server.handle_request()
        assert late == [server]
        silent = connect(server)
        with silent:
            server.handle_request()
            wanted = 1
            wait_until(alive)
            with connect(server) as other:
                wanted = 2
                wait_until(alive)
                other.sendall(b"line\n")
                wanted = 1
                wait_until(alive)
                assert receive(other) == b"line\n"
