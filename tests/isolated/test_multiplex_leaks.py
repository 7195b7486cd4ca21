"""Thousands of connections leave nothing behind, however they end, where handlers are greenlets.

Each way in a fresh process. Objects are counted as blocks of the interpreter's allocator, and as
references too on a debug interpreter; greenlets and connections among them by the collector. What
comes and goes (free lists, buffers, the pool of to_thread()) does so by some hundred blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REQUESTS = int(os.environ.get("FASTSOCK_LEAK_REQUESTS", "4000"))
WARM_UP = 600
AT_ONCE, FEW = 50, 4

PROGRAM = """
    import gc, json, os, signal, socket, struct, sys, tempfile, threading, time
    import fastsock, greenlet
    from fastsock import multiplexing
    from fastsock._tasks import Task

    how, requests, warm_up, at_once = sys.argv[1], *map(int, sys.argv[2:])
    waiting, unwound = {}, []

    def normal(self):
        for line in self.rfile:
            self.wfile.write(line)

    def exception(self):
        raise ValueError(self.rfile.readline())

    def exits(self):
        self.wfile.write(self.rfile.readline())
        raise SystemExit(1)

    def timeout(self):
        self.request.settimeout(0.001)
        self.rfile.readline()
        self.rfile.readline()

    def reset(self):
        self.rfile.readline()
        self.wfile.write(b"x" * 300_000)
        self.rfile.readline()

    def suspended(self):
        waiting[self] = self.rfile.readline()
        try:
            self.rfile.readline()
        finally:
            unwound.append(1)

    def tools(self):
        line = self.rfile.readline()
        lock, queue = multiplexing.Lock(), multiplexing.Queue(1)
        with lock:
            task = multiplexing.spawn(queue.put, line)
            multiplexing.sleep(0.001)
        self.wfile.write(queue.get())
        task.join()
        multiplexing.to_thread(len, line)
        multiplexing.wait(self.request, write=True)
        multiplexing.wait(self.request, read=True, timeout=0.001)

    def outbound(self):
        line = self.rfile.readline()
        with multiplexing.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(line)
            self.wfile.write(connection.recv(100))
        try:
            multiplexing.create_connection(("127.0.0.1", closed), 20)
        except ConnectionRefusedError:
            pass

    def spawned_raises(self):
        task = multiplexing.spawn(int, self.rfile.readline())
        task.join()
        try:
            multiplexing.to_thread(int, "no number")
        except ValueError:
            pass

    threading.excepthook = lambda *_: None
    handle = suspended if how in ("closed", "thread", "killed") else globals()[how]

    class Handler(fastsock.StreamRequestHandler):
        def handle(self):
            handle(self)

    class Server(multiplexing.MultiplexingTCPServer):
        request_queue_size = 1024
        open_requests = 0
        daemon_threads = True

        def handle_error(self, request, client_address):
            pass  # expected

        def process_request(self, request, client_address):
            self.open_requests += 1
            super().process_request(request, client_address)

        def process_request_thread(self, request, client_address):
            try:
                super().process_request_thread(request, client_address)
            finally:
                self.open_requests -= 1

    server = Server(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    if how == "outbound":
        class Echo(fastsock.StreamRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.readline())
        echo = Server(("127.0.0.1", 0), Echo)
        threading.Thread(target=echo.serve_forever, daemon=True).start()
        port = echo.server_address[1]
        unbound = socket.socket()
        unbound.bind(("127.0.0.1", 0))
        closed = unbound.getsockname()[1]

    def serve():
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        return thread

    def until(predicate):
        deadline = time.monotonic() + 30
        while not predicate():
            assert time.monotonic() < deadline, "too late"
            time.sleep(0.0005)

    def connect():
        client = socket.create_connection(server.server_address, 20)
        client.sendall(b"hello\\n")
        return client

    def take_away(handler, number):
        request = handler.request
        if number % 3 == 0:
            request.close()
            request._real_close()
        elif number % 3 == 1:
            request.shutdown(socket.SHUT_RDWR)
        else:
            os.close(request.detach())

    def take_all_away():
        for number, handler in enumerate(list(waiting)):
            take_away(handler, number)
        waiting.clear()

    def batch():
        global serving
        clients = [connect() for _ in range(at_once)]
        if handle is suspended:
            until(lambda: len(waiting) == at_once)
            if how == "thread":
                take_all_away()
            elif how == "closed":
                # By another greenlet: a hook runs between them.
                server.service_actions = take_all_away
                until(lambda: not waiting)
                del server.service_actions
            else:
                server.shutdown()  # daemon_threads: they are unwound
                serving.join()
                waiting.clear()
                serving = serve()
        for client in clients:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "tools":
                assert client.recv(100) == b"hello\\n"
            elif how == "normal":
                client.shutdown(socket.SHUT_WR)
            if how not in ("reset", "tools"):
                try:
                    while client.recv(100): pass
                except ConnectionResetError:
                    pass
            client.close()
        until(lambda: server.open_requests == 0)

    def run(count):
        for _ in range(count // at_once):
            batch()

    def settled():
        \"\"\"What there is when it changes no more: a task ends a little after its request,
        and a loop that has just been started makes its descriptors.\"\"\"
        seen = []
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            seen.append(look())
            counts = [{**found, "blocks": 0, "references": 0} for found in seen[-8:]]
            if len(counts) == 8 and counts.count(counts[0]) == 8:
                break
            time.sleep(0.01)
        return seen[-1]

    def look():
        until(lambda: server.open_requests == 0)
        if how == "outbound":
            until(lambda: echo.open_requests == 0)
        # The request is over a little before its handler is.
        until(lambda: not any(type(thing) is Handler for thing in gc.get_objects()))
        for _ in range(3):
            gc.collect()
        kinds = [type(thing).__name__ for thing in gc.get_objects()]
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            # those of to_thread() come and go by themselves
            "threads": sum("_offload" not in type(t).__module__ for t in threading.enumerate()),
            "of the pool": threading.active_count() > 30,
            "blocks": sys.getallocatedblocks(),
            "references": getattr(sys, "gettotalrefcount", int)(),
            "greenlets": kinds.count("greenlet"),
            "connections": kinds.count("Connection"),
            "tasks": kinds.count("Task"),
            "handlers": kinds.count("Handler"),
            "unwound": len(unwound),
        }

    serving = serve()
    run(warm_up)
    before = settled()
    run(requests)
    after = settled()
    server.shutdown()
    serving.join()
    server.server_close()
    print(json.dumps([before, after]))
"""

WAYS = (
    "normal",
    "exception",
    "exits",
    "timeout",
    "reset",
    "closed",
    "thread",
    "killed",
    "tools",
    "outbound",
    "spawned_raises",
)


@pytest.fixture
def long_limit() -> None:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler
    import signal

    signal.setitimer(signal.ITIMER_REAL, 120)
    faulthandler.dump_traceback_later(150, exit=True)


@pytest.mark.parametrize("how", WAYS)
def test_requests(long_limit: None, how: str, package_parent: Path | None) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    if package_parent is not None:
        environment["PYTHONPATH"] = str(package_parent)
    # With more at a time the pool of to_thread() would grow by and by.
    at_once = FEW if how in ("tools", "spawned_raises") else AT_ONCE
    arguments = [how, str(REQUESTS), str(WARM_UP), str(at_once)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        cwd="/",
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    before, after = json.loads(done.stdout)
    suspended = how in ("closed", "thread", "killed")
    assert after.pop("unwound") - before.pop("unwound") == (REQUESTS if suspended else 0)
    # A thread's own greenlet goes some time after the thread; the hub may have the last connection.
    for count in ("greenlets", "connections"):
        assert abs(after.pop(count) - before.pop(count)) <= 1, count
    for count in ("blocks", "references"):
        assert after.pop(count) - before.pop(count) < REQUESTS / 20, (count, before, after)
    assert after == before
