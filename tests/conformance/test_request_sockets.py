"""A request is a socket.socket: whichever method comes first, its timeouts, how it ends."""

from __future__ import annotations

import copy
import fcntl
import gc
import os
import pickle
import random
import re
import select
import selectors
import socket
import ssl
import stat
import tempfile
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
from accepted import Make, both, default_timeout, each_stream, fresh, same, take, taking
from support import TIMEOUT, Background, Kind, connect, outcome
from test_sockets import server_context

__all__ = ["default_timeout", "server_context"]  # fixtures

Call = Callable[[Any, socket.socket], Any]


# --- every method as the first one


def sent(client: socket.socket, data: bytes = b"data") -> None:
    """Bytes that have arrived when this returns, as loopback connections have it."""
    client.sendall(data)


def first_close(sock: Any, client: socket.socket) -> Any:
    return sock.close(), sock.fileno(), client.recv(1)


def first_detach(sock: Any, client: socket.socket) -> Any:
    descriptor = sock.detach()
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL), fcntl.fcntl(descriptor, fcntl.F_GETFD)
    with socket.socket(fileno=descriptor) as other:
        sent(client)
        return flags, other.recv(100), sock.fileno()


def first_dup(sock: Any, client: socket.socket) -> Any:
    with sock.dup() as other:
        sent(client)
        told = other.get_inheritable(), other.gettimeout(), other.fileno() == sock.fileno()
        return other.recv(100), type(other) is type(sock), told


def first_makefile(sock: Any, client: socket.socket) -> Any:
    with sock.makefile("rwb") as file:
        sent(client, b"line\n")
        return file.readline(), file.write(b"answer"), file.flush()


def first_recv_into(sock: Any, client: socket.socket) -> Any:
    buffer = bytearray(10)
    sent(client)
    return sock.recv_into(buffer), buffer


def first_recvfrom_into(sock: Any, client: socket.socket) -> Any:
    buffer = bytearray(10)
    sent(client)
    return sock.recvfrom_into(buffer), buffer


def first_recvmsg_into(sock: Any, client: socket.socket) -> Any:
    buffer = bytearray(10)
    sent(client)
    return sock.recvmsg_into([buffer])[:3], buffer


def first_sendfile(sock: Any, client: socket.socket) -> Any:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 1000)
        file.seek(0)
        return sock.sendfile(file), file.tell(), client.recv(1000, socket.MSG_WAITALL)


def first_setsockopt(sock: Any, client: socket.socket) -> Any:
    done = sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return done, sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def after(client: socket.socket, call: Callable[[], Any]) -> Any:
    sent(client)
    return call()


FIRST: dict[str, Call] = {
    "accept": lambda sock, client: sock.accept(),
    "bind": lambda sock, client: outcome(sock.bind, client.getpeername())[:2],
    "close": first_close,
    "connect": lambda sock, client: sock.connect(client.getsockname()),
    "connect_ex": lambda sock, client: sock.connect_ex(client.getsockname()),
    "detach": first_detach,
    "dup": first_dup,
    "family": lambda sock, client: (sock.family, type(sock.family)),
    "fileno": lambda sock, client: stat.S_ISSOCK(os.fstat(sock.fileno()).st_mode),
    "get_inheritable": lambda sock, client: sock.get_inheritable(),
    "getblocking": lambda sock, client: sock.getblocking(),
    "getpeername": lambda sock, client: sock.getpeername() == client.getsockname(),
    "getsockname": lambda sock, client: sock.getsockname() == client.getpeername(),
    "getsockopt": lambda sock, client: sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    "gettimeout": lambda sock, client: sock.gettimeout(),
    "listen": lambda sock, client: sock.listen(),
    "makefile": first_makefile,
    "proto": lambda sock, client: (sock.proto, type(sock.proto)),
    "recv": lambda sock, client: after(client, lambda: sock.recv(100)),
    "recv_into": first_recv_into,
    "recvfrom": lambda sock, client: after(client, lambda: sock.recvfrom(100)),
    "recvfrom_into": first_recvfrom_into,
    "recvmsg": lambda sock, client: after(client, lambda: sock.recvmsg(100)[:3]),
    "recvmsg_into": first_recvmsg_into,
    "send": lambda sock, client: sock.send(b"x"),
    "sendall": lambda sock, client: sock.sendall(b"x"),
    "sendfile": first_sendfile,
    "sendmsg": lambda sock, client: sock.sendmsg([b"x", b"y"]),
    "sendmsg_afalg": lambda sock, client: sock.sendmsg_afalg([b"x"], op=1),
    "sendto": lambda sock, client: sock.sendto(b"x", client.getsockname()),
    "set_inheritable": lambda sock, client: (sock.set_inheritable(True), sock.get_inheritable()),
    "setblocking": lambda sock, client: (sock.setblocking(False), sock.gettimeout()),
    "setsockopt": first_setsockopt,
    "settimeout": lambda sock, client: (sock.settimeout(5), sock.gettimeout()),
    "shutdown": lambda sock, client: (sock.shutdown(socket.SHUT_WR), client.recv(1)),
    "timeout": lambda sock, client: sock.timeout,
    "type": lambda sock, client: (sock.type, type(sock.type)),
    "__enter__": lambda sock, client: sock.__enter__() is sock,
    "__exit__": lambda sock, client: (sock.__exit__(), sock.fileno()),
    "_accept": lambda sock, client: sock._accept(),
    "_check_sendfile_params": lambda sock, client: sock._check_sendfile_params(None, -1, 1),
    "_closed": lambda sock, client: sock._closed,
    "_decref_socketios": lambda sock, client: sock._decref_socketios(),
    "_io_refs": lambda sock, client: sock._io_refs,
    "_real_close": lambda sock, client: (sock._real_close(), sock.fileno()),
}
PUBLIC = [name for name in dir(socket.socket) if not name.startswith("_")]


def works(sock: Any, client: socket.socket, name: str) -> None:
    """Both ways, or it is closed."""
    if sock.fileno() < 0:
        assert client.recv(1) == b""
        return
    sock.settimeout(TIMEOUT)
    client.sendall(b"ping")
    assert sock.recv(100) == b"ping"
    if name != "shutdown":
        sock.sendall(b"pong.")
        answer = b""
        while not answer.endswith(b"pong."):
            chunk = client.recv(1)
            assert chunk, answer
            answer += chunk


@each_stream
@pytest.mark.parametrize("name", dict.fromkeys([*PUBLIC, *FIRST]))
def test_first_call(ss: ModuleType, make: Make, folder: str, kind: Kind, name: str) -> None:
    """Any name of socket.socket may be the first that is used; a new name is missing in FIRST."""
    with both(ss, make, folder, kind) as (found, expected):
        if name in FIRST and name not in PUBLIC and not hasattr(socket.socket, name):
            pytest.skip(f"{name} is not in this Python")
        result = same(found, expected, FIRST[name])
        assert result[0] is not AttributeError
        works(*found, name)


@pytest.mark.fastsock_only(reason="Connection is fastsock's")
@each_stream
def test_what_a_request_is(ss: ModuleType, make: Make, kind: Kind) -> None:
    """Made by the core, or by get_request() where something else asks for it."""
    from fastsock._connection import Connection

    server = make(taking(ss, kind))
    request, client = take(server)
    with request, client:
        assert type(request) is Connection and isinstance(request, socket.socket)
    with connect(server) as client, server.get_request()[0] as request:
        assert type(request) is Connection
        works(request, client, "")


@pytest.mark.parametrize(
    ("name", "value"), [("timeout", 1.0), ("family", 2), ("type", 1), ("proto", 6), ("other", 1)]
)
def test_attributes_are_read_only(ss: ModuleType, make: Make, name: str, value: Any) -> None:
    with fresh(ss, make) as (request, _), pytest.raises(AttributeError):
        setattr(request, name, value)


@pytest.mark.fastsock_only(reason="Connection is fastsock's")
def test_made_by_a_program(ss: ModuleType) -> None:
    """Connection(...) is what socket.socket(...) is."""
    from fastsock._connection import Connection

    with Connection() as sock, Connection(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        sock.settimeout(3)
        sock.bind(("127.0.0.1", 0))
        assert (sock.family, sock.type, sock.gettimeout()) == (2, 1, 3.0)
        assert (other.family, other.type, other.gettimeout()) == (1, 2, None)
        with Connection(fileno=os.dup(other.fileno())) as copied:
            assert (copied.family, copied.type) == (1, 2)


@each_stream
def test_repr(ss: ModuleType, make: Make, folder: str, kind: Kind) -> None:
    """The text of socket.socket, but for the class, the descriptor and the addresses."""

    def text(sock: Any, client: socket.socket) -> str:
        shown = repr(sock)
        kind_of = f"<{type(sock).__module__}.{type(sock).__qualname__}"
        assert shown.startswith(kind_of), shown
        assert f" fd={sock.fileno()}," in shown
        shown = shown.removeprefix(kind_of)
        for address in client.getpeername(), client.getsockname():
            shown = shown.replace(str(address) or "nothing", "address")
        return re.sub(r"fd=\d+", "fd=", shown)

    with both(ss, make, folder, kind) as (found, expected):
        assert "laddr" in same(found, expected, text)[1]
        for sock, _ in found, expected:
            sock.close()
        assert "[closed]" in same(found, expected, text)[1]
    with both(ss, make, folder, kind) as (found, expected):
        for sock, _ in found, expected:
            sock.close()
        assert "[closed]" in same(found, expected, text)[1]


# --- timeouts


def mode(sock: Any) -> tuple[Any, ...]:
    """The timeout in every form, and the flag of the descriptor."""
    flag = os.get_blocking(sock.fileno()) if sock.fileno() >= 0 else None
    return sock.gettimeout(), sock.timeout, sock.getblocking(), flag


TIMEOUTS = [
    *(None, 0, 0.0, -0.0, 1, 2.5, 0.1, 1e-9, 1e-10, 0.1234567891, 1e-300, True, False),
    *(10**6, 1e6, 10**6 + 1, 1000000.5, 2147483, 2147483.647, 2147484, 1e10, 10**20, 1e300),
    *(-1, -0.5, -1e-12, float("nan"), float("inf"), float("-inf"), "1", b"1", 1j, [], (1, 2)),
    *(Fraction(3, 2), Decimal("1.5"), socket.SOCK_STREAM),
]


@pytest.mark.parametrize("value", TIMEOUTS, ids=repr)
@pytest.mark.parametrize("handed_over", [False, True])
def test_settimeout(ss: ModuleType, make: Make, folder: str, value: Any, handed_over: bool) -> None:
    def set_it(sock: Any, client: socket.socket) -> Any:
        if handed_over:
            sock.getpeername()
        done = outcome(sock.settimeout, value)
        told = mode(sock)
        client.sendall(b"data")
        return done, told, sock.recv(100), sock.getsockname() and mode(sock)

    with both(ss, make, folder) as (found, expected):
        same(found, expected, set_it)


@pytest.mark.parametrize("value", [True, False, 0, 1, None, "", "x", 0.0, []], ids=repr)
def test_setblocking(ss: ModuleType, make: Make, folder: str, value: Any) -> None:
    def set_it(sock: Any, client: socket.socket) -> Any:
        return outcome(sock.setblocking, value), mode(sock), sock.getsockname() and mode(sock)

    with both(ss, make, folder) as (found, expected):
        same(found, expected, set_it)


@pytest.mark.parametrize("seed", range(10))
def test_modes_in_any_order(ss: ModuleType, make: Make, folder: str, seed: int) -> None:
    """The descriptor's O_NONBLOCK is at every moment what socket.socket would have set."""
    steps: list[Call] = [
        lambda sock, client: sock.settimeout(None),
        lambda sock, client: sock.settimeout(0),
        lambda sock, client: sock.settimeout(3),
        lambda sock, client: sock.settimeout(2e6),
        lambda sock, client: sock.settimeout(-1),
        lambda sock, client: sock.setblocking(True),
        lambda sock, client: sock.setblocking(False),
        lambda sock, client: (client.sendall(b"x"), sock.recv(10)),
        lambda sock, client: sock.getsockname() and None,
        lambda sock, client: sock.makefile("rb").close(),
        lambda sock, client: os.set_blocking(sock.fileno(), False),
    ]
    drawing = random.Random(seed)
    with both(ss, make, folder) as (found, expected):
        for _ in range(30):
            same(found, expected, drawing.choice(steps))
            same(found, expected, lambda sock, client: mode(sock))


@pytest.mark.parametrize("value", [None, 0.0, 3.0])
@pytest.mark.parametrize("later", [None, 0.0, 2.0])
@pytest.mark.parametrize("of_listener", [None, 0.0, 5.0])
def test_default_timeout(
    ss: ModuleType,
    make: Make,
    default_timeout: Callable[[float | None], None],
    value: float | None,
    later: float | None,
    of_listener: float | None,
) -> None:
    """That of the moment of the accept; the listener's own is not handed on."""
    server = make(taking(ss))
    server.socket.settimeout(of_listener)
    default_timeout(value)
    request, client = take(server)
    with request, client:
        default_timeout(later)
        expected = (value, value, value != 0, value is None)
        assert mode(request) == expected
        assert request.getpeername() and mode(request) == expected
        with request.dup() as copied:
            assert copied.gettimeout() == value


@pytest.mark.parametrize("how", ["first", "second"])
def test_timeout_of_a_closed_request(ss: ModuleType, make: Make, folder: str, how: str) -> None:
    def closed(sock: Any, client: socket.socket) -> Any:
        if how == "second":
            sock.getpeername()
        sock.settimeout(3)
        sock.close()
        return mode(sock), outcome(sock.settimeout, 1), outcome(sock.setblocking, True)

    with both(ss, make, folder) as (found, expected):
        same(found, expected, closed)


# --- ends


def test_closed_twice(ss: ModuleType, make: Make, folder: str) -> None:
    """The second time it does nothing, also when the number is in use again."""
    with both(ss, make, folder) as (found, expected):

        def twice(sock: Any, client: socket.socket) -> Any:
            number = sock.fileno()
            sock.close()
            reader, writer = os.pipe()
            os.dup2(reader, number)
            try:
                return sock.close(), sock.detach(), stat.S_ISFIFO(os.fstat(number).st_mode)
            finally:
                for each in {reader, writer, number}:
                    os.close(each)

        assert same(found, expected, twice) == ("returned", (None, -1, True))


@pytest.mark.parametrize("name", [name for name in FIRST if name not in ("sendmsg_afalg",)])
@pytest.mark.parametrize("end", ["close", "detach", "getpeername, close", "settimeout, close"])
def test_use_after_the_end(ss: ModuleType, make: Make, folder: str, name: str, end: str) -> None:
    """EBADF, or what the method does without a descriptor."""

    def used(sock: Any, client: socket.socket) -> Any:
        if end.startswith("getpeername"):
            sock.getpeername()
        elif end.startswith("settimeout"):
            sock.settimeout(TIMEOUT)
            client.sendall(b"x")
            assert sock.recv(10) == b"x"
        if end.endswith("close"):
            sock.close()
        else:
            os.close(sock.detach())
        return FIRST[name](sock, client)

    with both(ss, make, folder) as (found, expected):
        for _, client in found, expected:
            client.settimeout(1)
        if not hasattr(socket.socket, name) or name in ("close", "sendfile"):
            return  # their helpers here wait for bytes
        same(found, expected, used)


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("first", [False, True])
def test_closed_with_the_last_file(ss: ModuleType, make: Make, files: int, first: bool) -> None:
    """close() waits for the files of makefile(); until then the connection works through them."""
    with fresh(ss, make) as (request, client):
        opened = [request.makefile(mode) for mode in ("rb", "w", "rwb")[:files]]
        if first:
            request.settimeout(TIMEOUT)
        request.close()
        assert request._closed and request.fileno() >= 0
        client.sendall(b"line\n")
        assert opened[0].readline() == b"line\n"
        for file in opened:
            assert request.fileno() >= 0
            file.close()
        assert request.fileno() == -1
        assert client.recv(1) == b""


def test_context_manager(ss: ModuleType, make: Make) -> None:
    request, client = take(make(taking(ss)))
    with client:
        with pytest.raises(KeyError), request as entered:
            assert entered is request
            raise KeyError
        assert request.fileno() == -1
        assert client.recv(1) == b""
        with request:  # as any socket
            pass


@each_stream
@pytest.mark.parametrize("first", ["", "getpeername", "fileno"])
def test_dropped_unclosed(ss: ModuleType, make: Make, kind: Kind, first: str) -> None:
    """A program that forgets a request is told so, and the client sees its end."""
    gc.collect()  # what other tests have dropped
    request, client = take(make(taking(ss, kind)))
    with client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if first:
            getattr(request, first)()
        number, kept = request.fileno(), type(request)
        del request
        gc.collect()
        assert client.recv(1) == b""
    (warning,) = caught
    assert warning.category is ResourceWarning
    name = f"{kept.__module__}.{kept.__qualname__}"
    family = "AF_INET" if kind.transport == "TCP" else "AF_UNIX"
    text = str(warning.message)
    assert text.startswith(f"unclosed <{name} fd={number}, family="), text
    member = getattr(socket, family)
    assert f"family={member!s}," in text or f"family={int(member)}," in text, text


# --- shared, wrapped, refused


def test_inheritable(ss: ModuleType, make: Make) -> None:
    with fresh(ss, make) as (request, _):
        assert fcntl.fcntl(request.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert request.get_inheritable() is False
        request.set_inheritable(True)
        assert not fcntl.fcntl(request.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_not_pickled(ss: ModuleType, make: Make, protocol: int) -> None:
    with fresh(ss, make) as (request, _):
        name = type(request).__name__
        text = f"cannot pickle '{name}' object" if protocol > 1 else "socket|Connection"
        with pytest.raises(TypeError, match=text):
            pickle.dumps(request, protocol)
        with pytest.raises(TypeError, match=f"cannot pickle '{name}' object"):
            copy.copy(request)


@pytest.mark.parametrize("how", ["select", "poll", "epoll", "selectors"])
def test_selected_on(ss: ModuleType, make: Make, how: str) -> None:
    with fresh(ss, make) as (request, client):

        def readable(timeout: float) -> bool:
            if how == "select":
                return select.select([request], [], [], timeout)[0] == [request]
            if how == "selectors":
                with selectors.DefaultSelector() as selector:
                    selector.register(request, selectors.EVENT_READ)
                    return [key.fileobj for key, _ in selector.select(timeout)] == [request]
            poller = select.poll() if how == "poll" else select.epoll()
            poller.register(request, select.POLLIN)
            found = poller.poll(timeout * 1000 if how == "poll" else timeout)
            if how == "epoll":
                poller.close()
            return [number for number, _ in found] == [request.fileno()]

        assert not readable(0)
        client.sendall(b"x")
        assert readable(TIMEOUT)
        assert request.recv(1) == b"x"
        assert not readable(0)


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_tls(
    ss: ModuleType, make: Make, server_context: ssl.SSLContext, timeout: float | None
) -> None:
    """wrap_socket() takes the descriptor of a fresh request over."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with fresh(ss, make) as (request, client):

        def serve() -> tuple[Any, ...]:
            if timeout is not None:
                request.settimeout(timeout)
            with server_context.wrap_socket(request, server_side=True) as wrapped:
                wrapped.sendall(wrapped.recv(100).upper())
                return wrapped.gettimeout(), request.fileno(), request._closed

        serving = Background(serve)
        with context.wrap_socket(client) as secure:
            secure.sendall(b"hello")
            assert secure.recv(100) == b"HELLO"
        assert serving.result() == (timeout, -1, True)
