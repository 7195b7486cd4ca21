"""The programs in README.md and docs/ do what is said of them."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Programs, end, wait_until_asleep
from support import TIMEOUT

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: in front of a program: it tells its port
TELL = """
import fastsock

def tell(self, activate=fastsock.TCPServer.server_activate):
    activate(self)
    print(self.server_address[1], flush=True)

fastsock.TCPServer.server_activate = tell
"""


def program(document: str, handler: str) -> str:
    """The one with a handler of that name; port 8080 is any."""
    (text,) = [
        block
        for block in BLOCK.findall((ROOT / document).read_text())
        if f"class {handler}(" in block
    ]
    assert text.count("8080") == 1
    return TELL + text.replace("8080", "0")


@pytest.fixture
def start(programs: Programs) -> Iterator[Callable[..., tuple[str, int]]]:
    """start(document, handler, old, new): run it, with a change; return its address."""
    processes = []

    def start(document: str, handler: str, old: str = "", new: str = "") -> tuple[str, int]:
        text = program(document, handler)
        assert old in text
        programs.write("program.py", text.replace(old, new) if old else text)
        process = programs.start("-W", "error::RuntimeWarning", "program.py")
        processes.append(process)
        assert process.stdout is not None
        return "127.0.0.1", int(process.stdout.readline() or end(process).err)

    yield start
    for process in processes:
        wait_until_asleep(process)
        process.send_signal(signal.SIGINT)
        found = end(process)
        assert found.status == -signal.SIGINT
        assert found.err.splitlines()[-1] == "KeyboardInterrupt"


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, TIMEOUT)


THREADS = [("", ""), ("Multiplexing", "Threading")]  # the same handler either way


@pytest.mark.parametrize(("old", "new"), THREADS, ids=["multiplexing", "threading"])
def test_echo(start: Any, old: str, new: str) -> None:
    """Many at a time."""
    address = start("README.md", "Echo", old, new)
    clients = [connect(address) for _ in range(50)]
    for _ in range(3):
        for number, client in enumerate(clients):
            client.sendall(b"%d\n" % number)
        for number, client in reversed(list(enumerate(clients))):
            assert client.recv(100) == b"%d\n" % number
    for client in clients:
        client.close()


@pytest.mark.parametrize(("old", "new"), THREADS, ids=["multiplexing", "threading"])
def test_dictionary(start: Any, old: str, new: str) -> None:
    address = start("docs/multiplexing.md", "Dictionary", old, new)
    with connect(address) as one, connect(address) as other:
        for client, word, number in [
            (one, "a", 1),
            (other, "b", 2),
            (other, "a", 1),
            (one, "c", 3),
        ]:
            client.sendall(f"{word}\n".encode())
            assert client.recv(100) == b"%d\n" % number


@pytest.mark.parametrize(("old", "new"), THREADS, ids=["multiplexing", "threading"])
def test_pair(start: Any, old: str, new: str) -> None:
    """The one who listens gets what the other says."""
    address = start("docs/multiplexing.md", "Pair", old, new)
    with connect(address) as listener, connect(address) as speaker:
        listener.sendall(b"listen\n")
        speaker.sendall(b"speak\n")
        speaker.sendall(b"the line\n")
        assert listener.recv(100) == b"the line\n"


def test_limits(start: Any) -> None:
    address = start("docs/staying-up.md", "Lines", "max_connections_per_peer = 20",
                    "max_connections_per_peer = 1")  # fmt: skip
    with connect(address) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        with connect(address) as other:
            assert other.recv(1) == b""
        client.sendall(b"x" * 8193)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_deadlines(start: Any) -> None:
    address = start("docs/staying-up.md", "Patient", "idle_timeout = 60", "idle_timeout = 0.1")
    with connect(address) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        assert client.recv(1) == b""
