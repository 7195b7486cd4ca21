"""A thousand requests in flight and a hundred that are stuck: how the server ends.

fastsock's ``drain()``, then the standard library's ``shutdown()`` and ``server_close()``, in a
process each, served alike by threads. A client sends a line and waits for the answer, which comes
within the time that the drain has; the stuck ones never get one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STDLIB_LIMIT = 5.0  # seconds for which it is watched


def serve(kind: str, timeout: float, work: float) -> None:
    """The server's process: ends when a line comes on standard input, and says how that went."""
    if kind == "stdlib":
        import socketserver as module
    else:
        import fastsock as module  # type: ignore[no-redef]
    sleep: Any = time.sleep
    base: Any = module.ThreadingTCPServer
    if kind == "multiplexing":
        from fastsock import multiplexing

        sleep, base = multiplexing.sleep, multiplexing.MultiplexingTCPServer
    begun = []

    class Handler(module.StreamRequestHandler):  # type: ignore[misc, name-defined]
        def handle(self) -> None:
            line = self.rfile.readline()
            begun.append(line)
            sleep(work if line == b"work\n" else 3600)
            self.wfile.write(line)

    class Server(base):  # type: ignore[misc]
        request_queue_size = 4096
        daemon_threads = False

    server = Server(("127.0.0.1", 0), Handler)
    loop = threading.Thread(target=server.serve_forever, daemon=True)
    loop.start()
    print(server.server_address[1], flush=True)
    count = int(sys.stdin.readline())
    while len(begun) < count:
        time.sleep(0.001)
    print("begun", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    told: dict[str, Any] = {}
    if kind == "stdlib":
        ending = threading.Thread(
            target=lambda: (server.shutdown(), server.server_close()), daemon=True
        )
        ending.start()
        ending.join(STDLIB_LIMIT)
        told["ended"] = not ending.is_alive()
    else:
        report: Any = server.drain(timeout)
        told["ended"] = True
        told["report"] = [report.finished, report.idle_closed, report.cut_off]
    told["seconds"] = round(time.monotonic() - begin, 3)
    print(json.dumps(told), flush=True)
    import os

    os._exit(0)  # with threads that are stuck


def measure(
    kind: str, working: int, stuck: int, timeout: float, work: float
) -> tuple[dict[str, Any], int]:
    """What the server says, and how many clients got their answer."""
    command = [sys.executable, "-m", "soak.drain", kind, str(timeout), str(work)]
    tests = Path(__file__).resolve().parent.parent
    process = subprocess.Popen(
        command, cwd=tests, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with contextlib.ExitStack() as stack, process:
        try:
            address = ("127.0.0.1", int(process.stdout.readline()))
            lines = [b"work\n"] * working + [b"stuck\n"] * stuck
            process.stdin.write(f"{len(lines)}\n")
            process.stdin.flush()
            clients = []
            for line in lines:
                client = stack.enter_context(socket.create_connection(address, 10))
                client.sendall(line)
                clients.append(client)
            assert process.stdout.readline() == "begun\n"
            process.stdin.write("\n")
            process.stdin.flush()
            answered = collect(clients, timeout + 5)
            return json.loads(process.stdout.readline()), answered
        finally:
            process.kill()


def collect(clients: list[socket.socket], seconds: float) -> int:
    """How many get a whole answer, until all are closed."""
    poller = select.epoll()
    waiting = {client.fileno(): client for client in clients}
    for descriptor in waiting:
        poller.register(descriptor, select.EPOLLIN)
    answered = 0
    deadline = time.monotonic() + seconds
    with poller:
        while waiting and (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poller.poll(left):
                data = b""
                with contextlib.suppress(ConnectionResetError):
                    data = waiting[descriptor].recv(100)
                if data == b"work\n":
                    answered += 1
                poller.unregister(descriptor)
                del waiting[descriptor]
    return answered


def run(options: argparse.Namespace) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    failed = False
    for kind in ("threading", "multiplexing", "stdlib"):
        told, answered = measure(
            kind, options.working, options.stuck, options.timeout, options.work
        )
        print(
            f"{kind}: {options.working} in flight, {options.stuck} stuck, deadline "
            f"{options.timeout} s: "
            + (f"ended after {told['seconds']} s" if told["ended"] else
               f"has not ended after {told['seconds']} s")
            + f", {answered} answered"
            + (f", report {told['report']}" if "report" in told else "")
        )  # fmt: skip
        if kind != "stdlib":
            failed |= answered != options.working
            failed |= told["report"] != [options.working, 0, options.stuck]
            failed |= not options.timeout <= told["seconds"] <= options.timeout + options.late
    print("drain: failed" if failed else "drain: passed")
    return failed


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
