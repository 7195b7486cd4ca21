"""Servers that do unusual things with their attributes, and methods called on what is no server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from support import TIMEOUT, FakeRequest, ask, connect, is_fastsock, receive, serving, upper

Make = Callable[..., Any]


def handler(ss: ModuleType) -> Any:
    return upper(ss.StreamRequestHandler)


def raise_key_error(server: Any, name: str) -> Any:
    return {}[name]


def delegate(server: Any, name: str) -> Any:
    return getattr(server.inner, name)  # without end, while there is no `inner`


def say_none(server: Any, name: str) -> Any:
    return None


def mock_it(server: Any, name: str) -> Any:
    return mock.Mock()


@pytest.mark.parametrize("hook", [raise_key_error, delegate, say_none, mock_it])
def test_attributes_that_are_computed(ss: ModuleType, make: Make, hook: Any) -> None:
    server = make(ss.TCPServer, handler(ss), __getattr__=hook)
    with serving(server):
        assert ask(server) == b"HELLO\n"
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        assert receive(client) == b"HELLO\n"


def test_only_some_attributes_may_be_set(ss: ModuleType, make: Make) -> None:
    allowed = {
        "server_address",
        "RequestHandlerClass",
        "socket",
        "_BaseServer__is_shut_down",
        "_BaseServer__shutdown_request",
    }

    def set_attribute(server: Any, name: str, value: Any) -> None:
        if name not in allowed:
            raise AttributeError(name)
        object.__setattr__(server, name, value)

    server = make(ss.TCPServer, handler(ss), __setattr__=set_attribute)
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_a_server_that_has_no_hash(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, handler(ss), __eq__=lambda server, other: True)
    with serving(server):
        assert ask(server) == b"HELLO\n"


@pytest.mark.fastsock_only(reason="serve_forever() of several servers")
def test_servers_that_are_equal_are_two(ss: ModuleType, make: Make) -> None:
    equal = {"__eq__": lambda server, other: True, "__hash__": lambda server: 1}
    servers = [make(ss.TCPServer, handler(ss), **equal) for _ in range(2)]
    thread = threading.Thread(target=ss.serve_forever, args=servers)
    thread.start()
    try:
        assert [ask(server) for server in servers] == [b"HELLO\n"] * 2
    finally:
        for server in servers:
            server.shutdown()
        thread.join(TIMEOUT)


@pytest.mark.parametrize("hook", ["get_request", "finish_request"])
def test_a_hook_of_another_server(ss: ModuleType, make: Make, hook: str) -> None:
    """Its default, but bound to that one: so it does what it does there."""
    asked = make(ss.TCPServer, handler(ss))
    other = make(ss.TCPServer, handler(ss))
    other.RequestHandlerClass = answering(ss, b"other\n")
    setattr(asked, hook, getattr(other, hook))
    with connect(asked) as first, connect(other) as second:
        for client in (first, second):
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
        asked.handle_request()
        if hook == "get_request":  # a connection of the other one's listener
            assert receive(second) == b"HELLO\n"
        else:
            assert receive(first) == b"other\n"


def test_the_request_that_ends_the_loop_is_served(ss: ModuleType, make: Make) -> None:
    """By its thread, though the loop that would have woken it waits no more."""

    def verify_request(server: Any, request: Any, client_address: Any) -> bool:
        seen.append(client_address)
        server._BaseServer__shutdown_request = len(seen) == 3
        return True

    seen: list[Any] = []
    server = make(ss.ThreadingTCPServer, handler(ss), verify_request=verify_request)
    thread = threading.Thread(target=server.serve_forever, args=(60,))
    thread.start()
    for _ in range(3):
        assert ask(server) == b"HELLO\n"
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def answering(ss: ModuleType, answer: bytes) -> Any:
    def handle(self: Any) -> None:
        assert self.rfile.readline()
        self.wfile.write(answer)

    return type("Answering", (ss.StreamRequestHandler,), {"handle": handle})


@pytest.mark.parametrize("base", ["TCPServer", "UDPServer"])
def test_noblock_waits_for_a_request_if_there_is_none(
    ss: ModuleType, make: Make, base: str
) -> None:
    """Whatever its name says: so do programs' own loops without a selector use it."""
    kind = ss.UDPServer if base == "UDPServer" else ss.TCPServer
    stream = upper(ss.StreamRequestHandler if kind is ss.TCPServer else ss.DatagramRequestHandler)
    server = make(kind, stream)
    thread = threading.Thread(target=server._handle_request_noblock)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    assert ask(server) == b"HELLO\n"
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize("base", ["TCPServer", "UDPServer"])
def test_noblock_waits_as_long_as_the_socket_says(ss: ModuleType, make: Make, base: str) -> None:
    server = make(getattr(ss, base), ss.BaseRequestHandler)
    server.socket.settimeout(0.1)
    begin = time.monotonic()
    server._handle_request_noblock()
    assert time.monotonic() - begin >= 0.09


def flag_on_the_class(ss: ModuleType) -> dict[str, Any]:
    return {"_BaseServer__shutdown_request": False}


def flag_as_property(ss: ModuleType) -> dict[str, Any]:
    flags: dict[int, Any] = {}
    flag = property(
        lambda server: flags.get(id(server), False),
        lambda server, value: flags.__setitem__(id(server), value),
    )
    return {"_BaseServer__shutdown_request": flag}


@pytest.mark.parametrize("attributes", [flag_on_the_class, flag_as_property])
@pytest.mark.parametrize("by_flag", [False, True])
def test_a_flag_of_the_subclass(ss: ModuleType, make: Make, attributes: Any, by_flag: bool) -> None:
    server = make(ss.TCPServer, handler(ss), **attributes(ss))
    for _ in range(2):  # it is taken back at the end
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert ask(server) == b"HELLO\n"
        if by_flag:
            server._BaseServer__shutdown_request = True
        else:
            server.shutdown()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_the_flag_is_patched(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, handler(ss))
    with mock.patch.object(server, "_BaseServer__shutdown_request", True):
        server.serve_forever()
    with serving(server):
        assert ask(server) == b"HELLO\n"


@pytest.mark.parametrize("server", [None, object(), SimpleNamespace(), mock.Mock()], ids=repr)
def test_close_request_on_what_is_no_server(ss: ModuleType, server: Any) -> None:
    request = FakeRequest()
    ss.TCPServer.close_request(server, request)
    assert request.calls == ["close"]


def test_shutdown_request_on_what_is_no_server(ss: ModuleType) -> None:
    closed = []
    request = FakeRequest()
    ss.TCPServer.shutdown_request(SimpleNamespace(close_request=closed.append), request)
    assert request.calls == [("shutdown", socket.SHUT_WR)]
    assert closed == [request]


def test_collect_children_on_what_is_no_server(ss: ModuleType) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    server = SimpleNamespace(active_children={pid}, max_children=40)
    ss.ForkingMixIn.collect_children(server, blocking=True)
    assert server.active_children == set()


def test_an_error_whose_errno_cannot_be_read(ss: ModuleType, make: Make) -> None:
    class Odd(OSError):
        @property
        def errno(self) -> int:  # type: ignore[override]
            raise LookupError("errno")

    class Server(ss.TCPServer):
        failures = 0

        def get_request(self) -> Any:
            self.failures += 1
            if self.failures == 1:
                raise Odd
            return super().get_request()

    server = make(Server, handler(ss))
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert server.failures == 2


REPLACED = """
import socket, sys, threading
class Handler:
    def __init__(self, request, client_address, server): request.sendall(b"hello")
if sys.argv[1] == "import first":
    import NAME as ss
real = socket.socket
def guarded(*args, **kwargs):
    return real(*args, **kwargs)
socket.socket = guarded
import NAME as ss
server = ss.TCPServer(("127.0.0.1", 0), Handler)
thread = threading.Thread(target=server.serve_forever)
thread.start()
client = real()
client.settimeout(10)
client.connect(server.server_address)
print(client.recv(100))
client.close()
server.shutdown()
thread.join()
server.server_close()
"""


@pytest.mark.parametrize("first", ["import first", "replace first"])
def test_a_socket_class_that_is_a_function(ss: ModuleType, first: str) -> None:
    """As tests that forbid network access do it. accept() then gives what the function gives."""
    name = "fastsock" if is_fastsock(ss) else "socketserver"
    done = subprocess.run(
        [sys.executable, "-c", REPLACED.replace("NAME", name), first],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        cwd="/",
    )
    assert (done.stdout, done.stderr) == ("b'hello'\n", "")


def test_a_request_that_computes_its_attributes(ss: ModuleType, make: Make) -> None:
    """It is asked for nothing that the standard library does not ask for."""

    class Request(FakeRequest):
        def __getattr__(self, name: str) -> Any:
            return {}[name]

    def handle(handler: Any) -> None:
        handler.request.calls.append("handle")

    def get_request(server: Any) -> Any:
        server.socket.accept()[0].close()
        return request, "peer"

    request = Request()
    make_handler = type("Handler", (ss.BaseRequestHandler,), {"handle": handle})
    server = make(ss.TCPServer, make_handler, get_request=get_request)
    with connect(server):
        server.handle_request()
    assert request.calls == ["handle", ("shutdown", socket.SHUT_WR), "close"]


def test_a_property_of_a_handler_is_not_asked_before_setup(ss: ModuleType, make: Make) -> None:
    @property  # type: ignore[misc]
    def idle_timeout(handler: Any) -> int:
        return len({"set up": handler.is_set_up})

    def setup(handler: Any) -> None:
        handler.is_set_up = True
        ss.StreamRequestHandler.setup(handler)

    def handle(handler: Any) -> None:
        handler.wfile.write(b"%d" % handler.idle_timeout)

    attributes = {"idle_timeout": idle_timeout, "setup": setup, "handle": handle}
    attributes["__getattr__"] = raise_key_error  # until there is a value
    server = make(ss.TCPServer, type("Handler", (ss.StreamRequestHandler,), attributes))
    with connect(server) as client:
        server.handle_request()
        assert receive(client) == b"1"


@pytest.mark.parametrize("error", [AttributeError, TypeError, ValueError])
def test_a_class_that_is_asked_for_a_descriptor_in_vain(ss: ModuleType, error: Any) -> None:
    def fails(server: Any, name: str) -> Any:
        raise error(name)

    attributes: dict[str, Any] = {"__getattr__": fails}
    if error is not AttributeError:

        def getattribute(server: Any, name: str) -> Any:
            return (
                fails(server, name) if name == "fileno" else object.__getattribute__(server, name)
            )

        attributes = {"__getattribute__": getattribute}
    server = type("Server", (ss.BaseServer,), attributes)("nowhere", None)
    with pytest.raises(ValueError, match="Invalid file object"):
        server.serve_forever()
