"""``python -m fastsock run --multiplex``, with http.server above all."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import RUN, Ended, Programs, as_script_and_module, both, end
from support import TIMEOUT, wait_until

MULTIPLEX = (*RUN, "--multiplex")
MANY = 1000
#: as `http.server 0 --bind 127.0.0.1 --protocol HTTP/1.1`; that option is new in Python 3.11
KEEP_ALIVE = """
    from http.server import *
    from http.server import test
    test(SimpleHTTPRequestHandler, ThreadingHTTPServer, 'HTTP/1.1', 0, '127.0.0.1')
"""

Server = tuple["subprocess.Popen[str]", tuple[str, int]]


@pytest.fixture
def serve(programs: Programs) -> Callable[..., Server]:
    """serve(*run): http.server with keep-alive connections, in a folder with file.txt."""

    def start(*run: str) -> Server:
        programs.write("file.txt", b"the file")
        target = ["-m", "http.server", "0", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1"]
        if programs.version < (3, 11):
            programs.write("keep_alive.py", KEEP_ALIVE)
            target = ["keep_alive.py"]
        # Its log goes nowhere: nobody reads a pipe here, and a full one would stop the server.
        quiet = "import os; os.dup2(os.open('log', os.O_WRONLY | os.O_CREAT), 2)"
        programs.write("sitecustomize.py", quiet)
        programs.environment["PYTHONPATH"] = os.pathsep.join(
            [str(programs.folder), *filter(None, [programs.environment.get("PYTHONPATH")])]
        )
        process = programs.start("-W", "error", "-u", *run, *target)
        assert process.stdout is not None
        heading = process.stdout.readline()
        port = re.search(r"port (\d+)", heading)
        assert port is not None, (heading, end(process))
        return process, ("127.0.0.1", int(port[1]))

    return start


def log(programs: Programs) -> str:
    return (programs.folder / "log").read_text()


def get(client: socket.socket, path: str = "file.txt") -> bytes:
    client.sendall(f"GET /{path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    return answer(client)


def answer(client: socket.socket) -> bytes:
    with client.makefile("rb") as file:
        length = 0
        assert file.readline().startswith(b"HTTP/1.1 200")
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return file.read(length)


@contextlib.contextmanager
def connections(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """Each of which has had an answer."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(address, TIMEOUT))
            assert get(client) == b"the file"
            clients.append(client)
        yield clients


def threads(process: Any) -> int:
    return len(os.listdir(f"/proc/{process.pid}/task"))


def server_sockets(process: Any) -> int:
    found = 0
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found += os.readlink(path).startswith("socket:")
    return found


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MANY + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"no more than {hard} descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_a_thousand_connections_on_one_thread(programs: Programs, serve: Any) -> None:
    """And the watch. All are served in turn, stay open, and are served again."""
    process, address = serve(*MULTIPLEX)
    with connections(address, MANY) as clients:
        assert threads(process) == 2
        assert server_sockets(process) >= MANY + 1
        for client in clients:  # all at once
            client.sendall(b"GET /file.txt HTTP/1.1\r\nHost: here\r\n\r\n")
        for client in reversed(clients):
            assert answer(client) == b"the file"
        assert threads(process) == 2
        process.send_signal(signal.SIGINT)
        found = end(process)
    assert (found.status, found.out) == (0, "\nKeyboard interrupt received, exiting.\n")
    lines = log(programs).splitlines()
    assert len(lines) == 2 * MANY
    assert all('"GET /file.txt HTTP/1.1" 200' in line for line in lines)


def test_without_it_there_are_threads(serve: Any) -> None:
    """Else the count above would say nothing."""
    process, address = serve(*RUN)
    with connections(address, 10):
        assert threads(process) > 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["idle", "in the middle", "slow reader"])
def test_signals_with_connections_open(
    programs: Programs, serve: Any, number: signal.Signals, state: str
) -> None:
    """It ends as it would without --multiplex, and every client finds the end."""
    with open(programs.folder / "large", "wb") as file:
        file.truncate(50_000_000)
    ends = []
    for run in (RUN, MULTIPLEX):
        process, address = serve(*run)
        with connections(address, 20) as clients:
            if state == "in the middle":
                for client in clients:
                    client.sendall(b"GET /file.txt HTTP/1.1\r\nHost:")
            elif state == "slow reader":
                for client in clients:
                    client.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
                    assert client.recv(12) == b"HTTP/1.1 200"
            process.send_signal(number)
            ends.append(end(process))
            for client in clients:
                with contextlib.suppress(ConnectionResetError):
                    while client.recv(1 << 20):
                        pass
        assert "Traceback" not in log(programs)
    assert ends[0] == ends[1]
    assert ends[1].status == (0 if number == signal.SIGINT else -signal.SIGTERM)


def test_clients_that_break_off(programs: Programs, serve: Any) -> None:
    process, address = serve(*MULTIPLEX)
    with connections(address, 1) as clients:
        for _ in range(50):
            other = socket.create_connection(address, TIMEOUT)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            other.sendall(b"GET /file.txt HTTP/1.1\r\nHost: ")
            other.close()
        assert get(clients[0]) == b"the file"
        wait_until(lambda: server_sockets(process) == 2)
        assert get(clients[0]) == b"the file"
    process.send_signal(signal.SIGINT)
    assert end(process).status == 0


# --- the command line


@as_script_and_module
def test_names_and_arguments_are_the_programs(programs: Programs, target: list[str]) -> None:
    """As without it; --multiplex behind the target is the program's."""
    programs.write("app.py", "import sys; print(__name__, sys.argv, sys.path, __file__)\n")
    for arguments in (["--multiplex"], ["-m", "x"], []):
        expected, _ = both(programs, *target, *arguments)
        assert programs.run(*MULTIPLEX, *target, *arguments) == expected


def test_usage(programs: Programs) -> None:
    for arguments in (["-h"], ["--multiplex", "--help"]):
        found = programs.run(*RUN, *arguments)
        assert found.status == 0
        assert found.out.startswith("usage: python -m fastsock run [--multiplex] [-m] target")
    for arguments in (["--multiplex"], ["--multiplex", "-m"], ["--multiplex", "--multiplex", "x"]):
        found = programs.run(*RUN, *arguments)
        assert (found.status, found.out) == (2, "")
        assert found.err.startswith("usage: ")
    found = programs.run("-m", "fastsock", "run", "--multiplex", "nothing.py")
    assert found.status == 2
    assert "can't open file" in found.err


def test_without_greenlet(programs: Programs) -> None:
    """One line, and the program is not begun."""
    programs.write("greenlet.py", "raise ImportError('there is none')\n")
    programs.write("app.py", "print('begun')\n")
    found = programs.run(*MULTIPLEX, "app.py")
    assert (found.status, found.out) == (2, "")
    message = "multiplexing needs the package greenlet: pip install 'fastsock[multiplex]'\n"
    assert found.err.endswith(f": {message}") and found.err.count("\n") == 1
    assert programs.run(*RUN, "app.py") == Ended(0, "begun\n", "")


def test_warns_of_nothing(programs: Programs) -> None:
    """It comes before everything that could keep the standard library's."""
    programs.write(
        "app.py",
        """
        import http.server, logging.config, pydoc, socketserver, xmlrpc.server
        from fastsock import MultiplexingMixIn
        for cls in (http.server.ThreadingHTTPServer, logging.config.ThreadingTCPServer):
            print(issubclass(cls, MultiplexingMixIn))
        """,
    )
    assert programs.run("-W", "error", *MULTIPLEX, "app.py") == Ended(0, "True\nTrue\n", "")


def test_logging_configuration_over_a_socket(programs: Programs) -> None:
    """Its loop waits with select(): the request must not depend on that."""
    programs.write(
        "app.py",
        """
        import json, logging, logging.config, socket, struct
        listener = logging.config.listen(0)
        listener.start()
        listener.ready.wait()
        text = json.dumps({'version': 1, 'root': {'level': 'ERROR'}}).encode()
        with socket.create_connection(('localhost', listener.port)) as client:
            for part in (struct.pack('>L', len(text)), text[:5], text[5:]):
                client.sendall(part)
            client.shutdown(socket.SHUT_WR)
            client.recv(1)
        logging.config.stopListening()
        listener.join()
        print(logging.getLogger().level)
        """,
    )
    assert programs.run("-W", "error", *MULTIPLEX, "app.py") == Ended(0, "40\n", "")
