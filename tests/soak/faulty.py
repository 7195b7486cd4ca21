"""The server of ``faults``, ``starts`` and ``resets``; with faults.c preloaded its calls fail.

Prints its address; then obeys lines of JSON, each with an answer, until "close" or the end.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import errno
import hashlib
import importlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

CALLS = ("take", "receive", "send", "thread", "fork")
MIXED = ("calls", "EINTR", "EAGAIN", "short")
#: how a connection is read and written, and whether it has a timeout; its first byte says it
RECEIVES = ("recv", "recv_into", "rfile", "recvmsg", "recvfrom")
SENDS = ("wfile", "sendall", "send", "sendmsg")
FIRST = 48
WAYS = [(r, s, t) for r in RECEIVES for s in SENDS for t in (False, True)]


def receive(handler: Any, how: str, size: int) -> bytes:
    """What may be less."""
    request = handler.request
    if how == "rfile":
        return handler.rfile.read(size)  # type: ignore[no-any-return]
    if how == "recv_into":
        buffer = bytearray(size)
        return bytes(buffer[: request.recv_into(buffer)])
    found = getattr(request, how)(size)
    return found if how == "recv" else found[0]  # type: ignore[no-any-return]


def exactly(handler: Any, how: str, size: int) -> bytes:
    pieces = []
    while size:
        piece = receive(handler, how, size)
        if not piece:
            return b""
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def send(handler: Any, how: str, data: bytes) -> None:
    request = handler.request
    if how == "wfile":
        handler.wfile.write(data)
    elif how == "sendall":
        request.sendall(data)
    else:
        view = memoryview(data)
        while view:
            if how == "send":
                count = request.send(view)
            else:
                count = request.sendmsg([view[:1000], view[1000:]])
            view = view[count:]


def frames(handler: Any) -> None:
    """Each is a size and as many bytes; they are sent back, behind their hash."""
    first = handler.request.recv(1)
    if not first:
        return
    reads, writes, timed = WAYS[first[0] - FIRST]
    if timed:
        handler.request.settimeout(30)
    while head := exactly(handler, reads, 8):
        data = exactly(handler, reads, int(head))
        send(handler, writes, hashlib.sha1(data).digest() + data)


def replies(handler: Any) -> None:
    """A line asks for so many bytes."""
    for line in handler.rfile:
        handler.wfile.write(b"r" * int(line))


def works(handler: Any) -> None:
    """A line, by the server's to_thread() where there is one."""
    line = handler.rfile.readline()
    handler.wfile.write(handler.server.work(line))
    handler.rfile.readline()  # it lasts until the client has gone


def datagrams(handler: Any) -> None:
    handler.wfile.write(handler.packet)


HANDLERS: dict[str, Callable[[Any], None]] = {
    "frames": frames,
    "replies": replies,
    "works": works,
}
PREFIXES = {"sync": "", "threading": "Threading", "forking": "Forking", "udp": ""}
PREFIXES |= {"udp threading": "Threading", "multiplexing": "Multiplexing"}
PREFIXES |= {"unix multiplexing": "Multiplexing", "udp multiplexing": "Multiplexing"}


class Faulty:
    def __init__(self, options: argparse.Namespace) -> None:
        module: Any = importlib.import_module(options.implementation)
        kind: str = options.kind
        self.errors: collections.Counter[str] = collections.Counter()
        self.notices = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.is_datagrams = "udp" in kind
        transport = "UDP" if self.is_datagrams else "UnixStream" if "unix" in kind else "TCP"
        base = getattr(module, f"{PREFIXES[kind]}{transport}Server")
        handler: Any = module.StreamRequestHandler
        handle = HANDLERS[options.handler]
        if self.is_datagrams:
            handler, handle = module.DatagramRequestHandler, datagrams
        attributes = {
            "handle_error": self.handle_error,
            "request_queue_size": 1024,
            "work": staticmethod(bytes.upper),
            **options.server,
        }
        if "multiplexing" in kind:
            in_thread = importlib.import_module("fastsock.multiplexing").to_thread
            attributes["work"] = staticmethod(lambda line: in_thread(bytes.upper, line))
        server_class = type("Server", (base,), attributes)
        self.folder = tempfile.TemporaryDirectory(prefix="fs") if "unix" in kind else None
        address: Any = f"{self.folder.name}/s" if self.folder else ("127.0.0.1", 0)
        self.server: Any = server_class(address, type("Handler", (handler,), {"handle": handle}))
        self.ended: BaseException | None = None
        self.library: Any = None
        if "LD_PRELOAD" in os.environ:
            self.library = ctypes.CDLL(None)
            self.library.faults_plan.argtypes = [ctypes.c_int] * 2 + [ctypes.c_long] * 2
            for name in ("calls", "injected", "mixed", "looks"):
                getattr(self.library, f"faults_{name}").restype = ctypes.c_long
        self.serving = threading.Thread(target=self.serve)
        self.serving.start()

    def serve(self) -> None:
        try:
            self.server.serve_forever(0.05)
        except BaseException as error:
            self.ended = error

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        number = getattr(error, "errno", None)
        self.errors[errno.errorcode[number] if number else repr(error)] += 1
        if self.is_datagrams:  # its client waits
            self.notices.sendto(b"failed", client_address)

    def plan(self, call: str, error: str, every: int, times: int) -> None:
        self.errors.clear()
        self.library.faults_plan(CALLS.index(call), getattr(errno, error), every, times)

    def plan_none(self) -> None:
        for place in range(len(CALLS)):
            self.library.faults_plan(place, 0, 1, 0)

    def mix(self, percent: int) -> None:
        self.errors.clear()
        self.library.faults_mix(percent)

    def look(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "errors": self.errors,
            "serves": self.serving.is_alive(),
            "ended": repr(self.ended),
            "cpu": time.process_time(),
        }
        if self.library is not None:
            facts["injected"] = {
                name: self.library.faults_injected(place) for place, name in enumerate(CALLS)
            }
            facts["looks"] = self.library.faults_looks()
            facts["mixed"] = {
                name: self.library.faults_mixed(place) for place, name in enumerate(MIXED)
            }
        control = getattr(self.server, "_fastsock", None)
        if control is not None:
            facts["accept errors"] = {
                errno.errorcode[number]: count for number, count in control.accept_errors.items()
            }
            facts["start failures"] = control.start_failures
        return facts

    def close(self) -> dict[str, Any]:
        begin = time.monotonic()
        self.server.shutdown()
        self.serving.join()
        error = None
        try:
            self.server.server_close()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        if self.folder is not None:
            self.folder.cleanup()
        return {**self.look(), "close": error, "seconds": time.monotonic() - begin}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("implementation", choices=("socketserver", "fastsock"))
    parser.add_argument("kind", choices=list(PREFIXES))
    parser.add_argument("handler", choices=list(HANDLERS))
    parser.add_argument("--server", type=json.loads, default={}, help="its attributes")
    options = parser.parse_args()
    threading.stack_size(1 << 18)
    faulty = Faulty(options)
    print(json.dumps(faulty.server.server_address), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(faulty, command)(*arguments)), flush=True)
        if command == "close":
            break
    sys.stdout.close()
    os._exit(0)


if __name__ == "__main__":
    main()
