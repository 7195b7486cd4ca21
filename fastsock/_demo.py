"""``python -m fastsock demo``: the documented examples, live, then two rates side by side.

The examples are those of the documentation of ``socketserver``. The load is a connection per
request against its threaded example, made by one process for one server process at a time; the
implementations take turns, so that a machine that changes speed changes it for both.
"""

from __future__ import annotations

import importlib
import platform
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from types import ModuleType
from typing import Any

IMPLEMENTATIONS = ("socketserver", "fastsock")
BACKLOG = 128
CONCURRENT = 16
PAYLOAD = b"Hello World"
TIMEOUT = 10.0


def examples(socketserver: Any) -> dict[str, Any]:
    """The documented example classes, made on the given implementation."""

    class MyTCPHandler(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.data = self.request.recv(1024).strip()
            print(f"    server: Received from {self.client_address[0]}: {self.data!r}")
            self.request.sendall(self.data.upper())

    class MyStreamHandler(socketserver.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.data = self.rfile.readline(10000).rstrip()
            print(f"    server: {self.client_address[0]} wrote: {self.data!r}")
            self.wfile.write(self.data.upper())

    class MyUDPHandler(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            data = self.request[0].strip()
            print(f"    server: {self.client_address[0]} wrote: {data!r}")
            self.request[1].sendto(data.upper(), self.client_address)

    class ThreadedTCPRequestHandler(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            data = str(self.request.recv(1024), "ascii")
            name = threading.current_thread().name
            self.request.sendall(bytes(f"{name}: {data}", "ascii"))

    class ThreadedTCPServer(socketserver.ThreadingMixIn, socketserver.TCPServer):  # type: ignore[misc]
        request_queue_size = BACKLOG  # the same on both sides of the comparison

    return locals()


def main(seconds: float) -> int:
    """Show the examples on fastsock, then compare; return the exit status."""
    import fastsock

    classes = examples(fastsock)
    stream = (socket.AF_INET, socket.SOCK_STREAM)
    _show("TCP server, BaseRequestHandler", fastsock.TCPServer, classes["MyTCPHandler"], *stream)
    _show(
        "TCP server, StreamRequestHandler", fastsock.TCPServer, classes["MyStreamHandler"], *stream
    )
    _show(
        "UDP server", fastsock.UDPServer, classes["MyUDPHandler"], socket.AF_INET, socket.SOCK_DGRAM
    )
    _show_threaded(classes["ThreadedTCPServer"], classes["ThreadedTCPRequestHandler"])
    _show_run()
    print(
        f"\nThe same threaded server under load: a connection per request, {CONCURRENT} at a time,"
        f"\n{len(PAYLOAD)} bytes, backlog {BACKLOG} on both, not pinned, "
        f"Python {platform.python_version()}"
    )
    rates = compare(seconds)
    for name in IMPLEMENTATIONS:
        print(
            f"  {name:13} {statistics.median(rates[name]):8,.0f} requests/s"
            f"  (rounds: {min(rates[name]):,.0f} to {max(rates[name]):,.0f})"
        )
    ratios = [new / old for old, new in zip(*rates.values(), strict=True)]
    print(
        f"  fastsock / socketserver: {statistics.median(ratios):.2f}"
        f"  (round by round: {min(ratios):.2f} to {max(ratios):.2f})"
    )
    return 0


def _show(title: str, server_class: Any, handler: Any, family: int, kind: int) -> None:
    print(f"\n{title}")
    with server_class(("localhost", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            for text in ("hello world with TCP", "python is nice"):
                if kind == socket.SOCK_DGRAM:
                    text = text.replace("TCP", "UDP")
                print(f"    client: Sent:     {text}")
                with socket.socket(family, kind) as client:
                    client.settimeout(TIMEOUT)
                    client.connect(server.server_address)
                    client.sendall(bytes(text + "\n", "utf-8"))
                    print(f"    client: Received: {str(client.recv(1024), 'utf-8')}")
        finally:
            server.shutdown()
            serving.join()


def _show_threaded(server_class: Any, handler: Any) -> None:
    print("\nThreaded TCP server, several clients")
    with server_class(("localhost", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        print(f"    Server loop running in thread: {serving.name}")
        for number in (1, 2, 3):
            with socket.create_connection(server.server_address, TIMEOUT) as client:
                client.sendall(bytes(f"Hello World {number}", "ascii"))
                print(f"    Received: {str(client.recv(1024), 'ascii')}")
        server.shutdown()
        serving.join()


def _show_run() -> None:
    print("\nfastsock.run(), ended by SIGTERM while a client is connected that says nothing")
    with subprocess.Popen(
        [sys.executable, "-m", __name__, "run"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))
            with socket.create_connection(address, TIMEOUT) as client:
                client.sendall(b"hello\n")
                print(f"    client: Received: {str(client.recv(1024), 'utf-8').strip()}")
                process.terminate()
                print(f"    client: Received: {client.recv(1024)!r}, the end")
            print(f"    server: {process.stdout.readline().strip()}")
            process.wait(TIMEOUT)
        finally:
            process.kill()


def compare(seconds: float) -> dict[str, list[float]]:
    """Requests per second, round by round, of both implementations in turn."""
    rounds = 3
    each = max(seconds / rounds / len(IMPLEMENTATIONS), 0.05)
    rates: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(rounds):
        for name in IMPLEMENTATIONS:
            rates[name].append(_rate(name, each))
    return rates


def _rate(implementation: str, seconds: float) -> float:
    with subprocess.Popen(
        [sys.executable, "-m", __name__, implementation],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the {implementation} server did not start")
            address = ("127.0.0.1", int(line))
            _load(address, min(0.2, seconds))  # not counted
            return _load(address, seconds)
        finally:
            process.stdin.close()  # asks the server to stop
            process.wait(TIMEOUT)


def _load(address: tuple[str, int], seconds: float) -> float:
    """One process, CONCURRENT connections at a time, each answered reply verified."""
    poller = select.epoll()
    open_connections: dict[int, tuple[socket.socket, bytes]] = {}
    done = 0
    begin = time.perf_counter()
    end = begin + seconds

    def connect() -> None:
        client = socket.create_connection(address, TIMEOUT)
        client.sendall(PAYLOAD)
        open_connections[client.fileno()] = client, b""
        poller.register(client.fileno(), select.EPOLLIN)

    try:
        for _ in range(CONCURRENT):
            connect()
        while True:
            now = time.perf_counter()
            if now >= end:
                return done / (now - begin)
            for descriptor, _ in poller.poll(end - now):
                client, received = open_connections[descriptor]
                data = client.recv(1024)
                if data:
                    open_connections[descriptor] = client, received + data
                    continue
                if not received.endswith(PAYLOAD):
                    raise RuntimeError(f"a wrong reply under load: {received!r}")
                poller.unregister(descriptor)
                del open_connections[descriptor]
                client.close()
                done += 1
                connect()
    finally:
        for client, _ in open_connections.values():
            client.close()
        poller.close()


def _serve(implementation: ModuleType) -> None:
    """The server process of the comparison: stops when standard input ends."""
    classes = examples(implementation)
    server_class, handler = classes["ThreadedTCPServer"], classes["ThreadedTCPRequestHandler"]
    with server_class(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()
        serving.join()


def _serve_until_signal() -> None:
    """The server process of fastsock.run()."""
    import fastsock

    class Echo(fastsock.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    with fastsock.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        print(server.server_address[1], flush=True)
        print(fastsock.run(server, drain_timeout=TIMEOUT), flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["run"]:
    _serve_until_signal()
elif __name__ == "__main__":
    _serve(importlib.import_module(sys.argv[1]))
