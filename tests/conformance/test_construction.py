"""How servers come into being and are closed."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import Kind, Trace, ask, kinds, new, serving, upper

Make = Callable[..., Any]


@kinds(transports=("TCP", "UDP"))
def test_bind_and_activate_false(ss: ModuleType, kind: Kind, trace: Trace) -> None:
    """The caller binds, perhaps after setting options."""

    class Server(kind.server(ss)):
        def server_bind(self) -> None:
            trace.log("server_bind")
            super().server_bind()

        def server_activate(self) -> None:
            trace.log("server_activate")
            super().server_activate()

    address = ("127.0.0.1", 0)
    with Server(address, upper(kind.handler(ss)), bind_and_activate=False) as server:
        assert trace.names() == []
        assert server.server_address == address
        assert server.socket.getsockname() == ("0.0.0.0", 0)
        server.server_bind()
        assert server.server_address[1] != 0
        server.server_activate()
        with serving(server):
            assert ask(server) == b"HELLO\n"
        assert trace.names() == ["server_bind", "server_activate"]


@kinds(transports=("TCP", "UDP"))
@pytest.mark.parametrize("hook", ["server_bind", "server_activate"])
@pytest.mark.parametrize("error", [OSError(98, "no"), ValueError("no"), KeyboardInterrupt()])
def test_constructor_that_fails(
    ss: ModuleType, kind: Kind, trace: Trace, hook: str, error: BaseException
) -> None:
    """server_close() is called, which closes the socket; then the error is raised."""
    servers = []

    class Server(kind.server(ss)):
        def server_close(self) -> None:
            servers.append(self)
            super().server_close()

    def fail(self: Any) -> None:
        assert self.socket.fileno() != -1
        raise error

    with pytest.raises(type(error)) as caught:
        new("Failing", Server, **{hook: fail})(("127.0.0.1", 0), None)
    assert caught.value is error
    error.__traceback__ = None
    (server,) = servers
    assert server.fileno() == -1


def test_server_bind_overridden(ss: ModuleType, make: Make) -> None:
    """As http.server does: super(), then a look at server_address."""

    class Server(ss.TCPServer):
        def server_bind(self) -> None:
            super().server_bind()
            self.server_name, self.server_port = self.server_address[:2]

    server = make(Server)
    assert (server.server_name, server.server_port) == server.server_address


def test_server_close_overridden(ss: ModuleType, folder: str, trace: Trace) -> None:
    """Without super(): then the socket stays open, whoever called it."""

    class Server(ss.TCPServer):
        def server_close(self) -> None:
            trace.log("server_close")

    with Server(("127.0.0.1", 0), upper(ss.StreamRequestHandler)) as server:
        pass
    assert trace.names() == ["server_close"]
    with serving(server):
        assert ask(server) == b"HELLO\n"
    ss.TCPServer.server_close(server)
    assert server.fileno() == -1


@kinds()
def test_server_close_twice(ss: ModuleType, kind: Kind, make: Make) -> None:
    server = make(kind.server(ss))
    assert server.server_close() is None
    assert server.server_close() is None
    assert server.fileno() == -1
