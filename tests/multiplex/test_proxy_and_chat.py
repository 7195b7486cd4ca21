"""examples/tcp_proxy.py and examples/chat.py, with greenlets and with threads."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Programs, end, wait_until_asleep
from support import TIMEOUT, Background, receive

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
MIB = bytes(range(256)) * 4096


@pytest.fixture(params=[(), ("--threads",)], ids=["multiplexing", "threads"])
def start(
    request: pytest.FixtureRequest, programs: Programs
) -> Iterator[Callable[..., tuple[str, int]]]:
    """start(example, *args): run one and return its address; it ends with the test, in order."""
    processes: list[subprocess.Popen[str]] = []

    def start(name: str, *args: str) -> tuple[str, int]:
        process = programs.start("-W", "error", EXAMPLES / name, *request.param, "0", *args)
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on port "), end(process)
        return "127.0.0.1", int(line.split()[-1])

    yield start
    for process in processes:
        wait_until_asleep(process)  # or KeyboardInterrupt might be raised in a handler
        process.send_signal(signal.SIGINT)
        found = end(process)
        assert (found.status, found.err) == (0, "")


def connect(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, TIMEOUT)


# --- the proxy


@pytest.fixture
def proxy(start: Any) -> Iterator[Any]:
    """A proxy's address, and the listener that it is one for."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        listener.settimeout(TIMEOUT)
        yield start("tcp_proxy.py", f"127.0.0.1:{listener.getsockname()[1]}"), listener


@contextlib.contextmanager
def through(proxy: Any) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through the proxy."""
    address, listener = proxy
    with connect(address) as client:
        peer = listener.accept()[0]
        peer.settimeout(TIMEOUT)
        with peer:
            yield client, peer


def test_to_and_fro(proxy: Any) -> None:
    with through(proxy) as (client, peer):
        for number in range(10):
            client.sendall(b"question %d" % number)
            assert peer.recv(100) == b"question %d" % number
            peer.sendall(b"answer %d" % number)
            assert client.recv(100) == b"answer %d" % number


@pytest.mark.parametrize("client_first", [True, False])
def test_half_of_it_ends(proxy: Any, client_first: bool) -> None:
    """The other half goes on."""
    with through(proxy) as ends:
        one, other = ends if client_first else ends[::-1]
        one.sendall(b"that is all")
        one.shutdown(socket.SHUT_WR)
        assert receive(other) == b"that is all"
        for _ in range(3):
            other.sendall(b"more")
            assert one.recv(100) == b"more"
        other.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""


def test_both_at_once(proxy: Any) -> None:
    """More than the buffers hold: neither direction waits for the other."""
    data = MIB * 8

    def send(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with through(proxy) as ends:
        senders = [Background(send, sock) for sock in ends]
        receivers = [Background(receive, sock) for sock in ends]
        for receiver in receivers:
            assert receiver.result() == data
        for sender in senders:
            sender.result()


@pytest.mark.parametrize("client_dies", [True, False])
def test_one_side_dies(proxy: Any, client_dies: bool) -> None:
    """With a reset: the other is told, though nobody sends to it or receives from it."""
    with through(proxy) as ends:
        one, other = ends if client_dies else ends[::-1]
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        one.close()
        with contextlib.suppress(ConnectionResetError):
            assert other.recv(1) == b""


def test_many_at_a_time(proxy: Any) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(through(proxy)) for _ in range(100)]
        for number, (client, _) in enumerate(pairs):
            client.sendall(b"%d" % number)
        for number, (_, peer) in reversed(list(enumerate(pairs))):
            assert peer.recv(10) == b"%d" % number
            peer.sendall(b"%d!" % number)
        for number, (client, _) in enumerate(pairs):
            assert client.recv(10) == b"%d!" % number


def test_nobody_behind_the_proxy(start: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = start("tcp_proxy.py", f"localhost:{sock.getsockname()[1]}")
        for _ in range(2):
            with connect(address) as client:
                assert client.recv(1) == b""


def test_a_proxy_behind_a_proxy(proxy: Any, start: Any) -> None:
    first = start("tcp_proxy.py", f"localhost:{proxy[0][1]}")
    with through((first, proxy[1])) as (client, peer):
        client.sendall(b"far")
        client.shutdown(socket.SHUT_WR)
        assert receive(peer) == b"far"
        peer.sendall(MIB)
        peer.close()
        assert receive(client) == MIB


# --- the chat


class Guest:
    """A client of the chat."""

    def __init__(self, address: tuple[str, int], name: str) -> None:
        self.sock = connect(address)
        self.file = self.sock.makefile("rb")
        assert self.hear() == "your name?"
        self.say(name)

    def say(self, line: str) -> None:
        self.sock.sendall(f"{line}\n".encode())

    def hear(self) -> str:
        return self.file.readline().decode().rstrip("\n")

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()
        self.sock.close()


def test_a_conversation(start: Any) -> None:
    address = start("chat.py")
    with Guest(address, "Ann") as ann:
        assert ann.hear() == "* Ann is here"
        with Guest(address, "Bob") as bob:
            assert ann.hear() == bob.hear() == "* Bob is here"
            ann.say("hello")
            assert bob.hear() == "Ann: hello"
            bob.say("hello yourself")
            assert ann.hear() == "Bob: hello yourself"
        assert ann.hear() == "* Bob has left"


def test_a_name_that_is_taken(start: Any) -> None:
    address = start("chat.py")
    with Guest(address, "Ann") as ann:
        assert ann.hear() == "* Ann is here"
        for name in ("Ann", ""):
            with Guest(address, name) as other:
                assert [other.hear(), other.hear()] == ["not with that name", ""]
    with Guest(address, "Cid") as cid:
        while (line := cid.hear()) != "* Cid is here":
            assert line == "* Ann has left"


def test_a_crowd(start: Any) -> None:
    """All hear the same, in the same order, but for what they have said themselves."""
    address = start("chat.py")
    names = [f"guest {number}" for number in range(30)]
    with contextlib.ExitStack() as stack:
        guests = []
        for name in names:
            guests.append(stack.enter_context(Guest(address, name)))
            for guest in guests:
                assert guest.hear() == f"* {name} is here"
        for guest in guests:
            guest.say("one")
            guest.say("two")
        heard = [[guest.hear() for _ in range(2 * 29)] for guest in guests]
    everything = {f"{name}: {line}" for name in names for line in ("one", "two")}
    for name, lines in zip(names, heard):
        assert set(lines) == {line for line in everything if not line.startswith(f"{name}: ")}
    first, second = heard[:2]
    common = set(first) & set(second)
    assert [x for x in first if x in common] == [x for x in second if x in common]


def test_somebody_who_does_not_read(start: Any) -> None:
    """Is thrown out; the others go on meanwhile."""
    address = start("chat.py")
    with Guest(address, "silent") as silent:
        assert silent.hear() == "* silent is here"  # before Ann is, who does not hear it
        with Guest(address, "Ann") as ann:
            assert ann.hear() == "* Ann is here"
            with Guest(address, "Bob") as bob:
                assert ann.hear() == bob.hear() == "* Bob is here"
                line, count = "x" * 900, 0
                while count < 100_000:
                    ann.say(line)
                    found = bob.hear()
                    if found == "* silent has left":
                        break
                    assert found == f"Ann: {line}"
                    count += 1
                assert count < 100_000
                assert silent.sock.fileno() >= 0
