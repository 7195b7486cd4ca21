"""Ten thousand requests leave nothing behind: no descriptor, thread, child process or object.

Each case in a fresh process. Objects are counted as blocks of the interpreter's allocator, and as
references too on a debug interpreter. Free lists and caches come and go by some hundred blocks
however many the requests, so there must be thousands. The standard library checks the test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

REQUESTS = {"fastsock": 10_000, "socketserver": 6_000}
IMPLEMENTATIONS = [
    "fastsock",
    pytest.param("socketserver", marks=pytest.mark.once("it only checks the test")),
]
WARM_UP = 500

PROGRAM = """
    import gc, importlib, io, json, os, socket, struct, sys, tempfile, threading

    implementation, kind, requests, warm_up, how = sys.argv[1:6]
    ss = importlib.import_module(implementation)
    stream = "UDP" not in kind and "Datagram" not in kind

    class Handler(ss.StreamRequestHandler if stream else ss.DatagramRequestHandler):
        def handle(self):
            line = self.rfile.readline()
            if line.startswith(b"raise"):
                raise ValueError("asked to")
            self.wfile.write(line.upper())

    base = getattr(ss, kind, None)
    class Server(base):
        def handle_error(self, request, client_address):
            pass  # expected: not to be printed thousands of times

        open_requests = 0
        lock = threading.Lock()

        def process_request(self, request, client_address):
            with self.lock: self.open_requests += 1
            super().process_request(request, client_address)

        def close_request(self, request):
            super().close_request(request)  # the client may have seen the end before this
            with self.lock: self.open_requests -= 1

    folder = tempfile.mkdtemp(prefix="fs")
    address = folder + "/s" if "Unix" in kind else ("127.0.0.1", 0)
    server = Server(address, Handler)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()
    family, type_ = server.address_family, server.socket_type

    def connect():
        client = socket.socket(family, type_)
        client.settimeout(20)
        if kind == "UnixDatagramServer":
            client.bind("")
        client.connect(server.server_address)
        return client

    def ask(client, line=b"hello\\n"):
        client.sendall(line)
        answer = client.recv(100)
        while stream and client.recv(100):
            pass
        return answer

    def abort(number):
        with connect() as client:
            if number % 4 == 0:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(b"half a li")
            elif number % 4 == 1:
                pass  # nothing is said
            elif number % 4 == 2:
                client.sendall(b"raise\\n")
                try:
                    while client.recv(100): pass
                except ConnectionResetError: pass
            else:
                client.sendall(b"hello\\n")  # the answer is not waited for

    datagrams = None if stream else connect()

    def run(count):
        for number in range(count):
            if how == "aborted":
                abort(number)
            elif stream:
                with connect() as client:
                    assert ask(client) == b"HELLO\\n"
            else:
                assert ask(datagrams) == b"HELLO\\n"
        if stream:  # what came before has been taken once this is answered
            with connect() as client:
                assert ask(client) == b"HELLO\\n"

    def settled():
        import time
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if kind.startswith("Forking"):
                server.collect_children()
                if server.active_children: time.sleep(0.01); continue
            if threading.active_count() > 2: time.sleep(0.01); continue
            if server.open_requests: time.sleep(0.01); continue
            break
        getattr(server._threads, "reap", lambda: None)() if hasattr(server, "_threads") else None
        gc.collect()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": len(getattr(server, "active_children", None) or ()),
            "blocks": sys.getallocatedblocks(),
            "references": getattr(sys, "gettotalrefcount", int)(),
        }

    run(int(warm_up))
    before = settled()
    run(int(requests))
    after = settled()
    server.shutdown(); serving.join(); server.server_close()
    if datagrams: datagrams.close()
    try:
        os.waitpid(-1, os.WNOHANG); child = True
    except ChildProcessError:
        child = False
    if "Unix" in kind: os.unlink(address)
    os.rmdir(folder)
    print(json.dumps([before, after, child, threading.active_count()]))
"""


def run(*arguments: object) -> tuple[dict[str, int], dict[str, int], bool, int]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(PROGRAM)]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        timeout=110,
        cwd="/",
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode == 0, done.stderr
    before, after, child, threads = json.loads(done.stdout)
    return before, after, child, threads


def check(requests: int, facts: Any) -> None:
    before, after, child, threads = facts
    assert after["descriptors"] == before["descriptors"]
    assert after["threads"] == before["threads"] == 2
    assert after["children"] == 0 and not child
    assert threads == 1
    for count in ("blocks", "references"):
        assert after[count] - before[count] < requests / 20, count


@pytest.fixture
def long_limit() -> None:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler
    import signal

    signal.setitimer(signal.ITIMER_REAL, 120)
    faulthandler.dump_traceback_later(150, exit=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "kind",
    [
        "TCPServer",
        "ThreadingTCPServer",
        "ForkingTCPServer",
        "UDPServer",
        "UnixStreamServer",
        "UnixDatagramServer",
    ],
)
def test_requests(long_limit: None, implementation: str, kind: str) -> None:
    requests = REQUESTS[implementation]
    if kind.startswith("Forking") and os.environ.get("FASTSOCK_ONCE_ON"):
        requests = REQUESTS["socketserver"]  # as many as show it; the others on one Python
    check(requests, run(implementation, kind, requests, WARM_UP, "answered"))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["TCPServer", "ThreadingTCPServer"])
def test_aborted_requests(long_limit: None, implementation: str, kind: str) -> None:
    """Not forking: the child would hold the client's end, which is in the same process, open."""
    requests = REQUESTS[implementation]
    check(requests, run(implementation, kind, requests, WARM_UP, "aborted"))
