"""What a signal handler raises leaves serve_forever(), whatever task was running when it came."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from crews import module_of
from programs import Programs
from support import connect, handling, receive, serving

from fastsock import _hubs, multiplexing

_PROGRAM = """
    import os, signal, sys, threading
    import socket, time
    from functools import partial
    import fastsock
    from fastsock import multiplexing

    class Stop(Exception):
        pass

    def plain(signum, frame):
        {action}

    class Bound:
        def method(self, signum, frame):
            {action}

        def __call__(self, signum, frame):
            {action}

    signal.signal(signal.SIGTERM, {handler})

    class Handler(fastsock.StreamRequestHandler):
        def handle(self):
            try:
                if {spawned}:
                    multiplexing.spawn(self.work).join()
                else:
                    self.work()
            finally:
                print("unwound", flush=True)

        def work(self):
            os.kill(os.getpid(), signal.SIGTERM)
            limit = time.monotonic() + 20
            while time.monotonic() < limit:
                pass
            print("too late")

    server = multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: print("handle_error", flush=True)
    server.daemon_threads = True
    client = socket.create_connection(server.server_address, 20)
    try:
        server.serve_forever(0.01)
    except (Stop, KeyboardInterrupt) as error:
        print(type(error).__name__, flush=True)
        server.server_close()
"""


@pytest.mark.parametrize("spawned", [False, True])
@pytest.mark.parametrize("handler", ["plain", "Bound().method", "Bound()", "partial(plain)"])
@pytest.mark.parametrize(
    ("action", "said", "status"),
    [("sys.exit(3)", "", 3), ("raise Stop", "Stop\n", 0), ("raise KeyboardInterrupt", "Key", 0)],
)
def test_it_leaves_the_loop(
    programs: Programs, action: str, said: str, status: int, handler: str, spawned: bool
) -> None:
    script = _PROGRAM.format(action=action, handler=handler, spawned=spawned)
    found = programs.run_script(script)
    assert found.status == status, found
    assert "handle_error" not in found.out
    assert "too late" not in found.out
    assert said in found.out
    assert found.out.count("unwound") == 1


def test_what_leaves_handle_error_is_told_as_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others go on."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: told.append(found.exc_type))

    def handle(handler: Any) -> None:
        if handler.rfile.readline() == b"raise\n":
            raise ValueError
        handler.wfile.write(b"alive\n")

    class Server(multiplexing.MultiplexingTCPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise LookupError("of handle_error")

    with (
        Server(("127.0.0.1", 0), handling(module_of("multiplexing"), handle)) as server,
        serving(server),
    ):
        with connect(server) as client:
            client.sendall(b"raise\n")
            assert receive(client) == b""
        with connect(server) as client:
            client.sendall(b"ask\n")
            assert receive(client) == b"alive\n"
    assert told == [LookupError]


def test_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for each error of a handler: 64 times getsignal() would make enums all along."""
    called: list[str] = []
    for name in ("getsignal", "valid_signals"):
        genuine = getattr(signal, name)
        monkeypatch.setattr(
            signal, name, lambda *args, g=genuine, n=name: (called.append(n), g(*args))[1]
        )
    assert not _hubs.raised_by_signal_handler(ValueError())
    assert called == []
