"""An exception in each hook of a server that handles requests in the serving thread."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import Kind, Trace, ask, connect, ended, kinds, new, receive, recording, serving, upper

Make = Callable[..., Any]

sync = kinds(flavours=("",), transports=("TCP", "UDP"))
each_mode = pytest.mark.parametrize("mode", ["handle_request", "serve_forever"])
ERRORS = [ValueError("boom"), OSError(5, "boom"), ConnectionResetError(104, "boom")]
ENDINGS = [SystemExit(3), KeyboardInterrupt("stop"), GeneratorExit()]
each_error = pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
each_ending = pytest.mark.parametrize("ending", ENDINGS, ids=lambda e: type(e).__name__)

GOT = ["get_request", "verify_request"]
END = ["shutdown_request", "close_request"]
FINISH = ["process_request", "finish_request"]
HANDLER_STEPS = {  # where the handler raises -> what of it was called
    "Handler": ["Handler"],
    "setup": ["Handler", "setup"],
    "handle": ["Handler", "setup", "handle", "finish"],
    "finish": ["Handler", "setup", "handle", "finish"],
}


class Scene:
    """A recording server some of whose hooks raise, and one client with a request."""

    def __init__(self, ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
        self.raising: dict[str, BaseException] = {}
        self.raised: list[BaseException] = []
        self.trace = trace
        handler = recording(upper(kind.handler(ss)), trace, self.raising)
        one = new("OneRequest", kind.server(ss), service_actions=self.stop)
        quiet = new("Quiet", one, handle_error=lambda self, request, client_address: None)
        self.server = make(recording(quiet, trace, self.raising), handler)

    def fail(self, name: str, error: BaseException) -> BaseException:
        """From now on this hook raises."""
        self.raising[name] = error
        self.raised.append(error)
        return error

    def release(self) -> None:
        """Let go of a request that nobody closed."""
        for error in self.raised:
            error.__traceback__ = error.__context__ = None
        self.server.last_request = None, None

    @staticmethod
    def stop(server: Any) -> None:
        server._BaseServer__shutdown_request = True

    def run(self, mode: str) -> list[str]:
        """Handle one request; the hooks called. service_actions ends serve_forever()."""
        self.trace.clear()
        with connect(self.server) as client:
            client.sendall(b"hello\n")
            getattr(self.server, mode)()
        return self.called()

    def called(self) -> list[str]:
        return self.trace.names("service_actions")

    def run_raising(self, mode: str, error: BaseException) -> list[str]:
        with pytest.raises(type(error)) as caught:
            self.run(mode)
        assert caught.value is error
        assert "service_actions" not in self.trace.names()
        return self.called()

    def check_usable(self) -> None:
        """Whatever happened, the loop has ended properly and can be run again."""
        self.raising.clear()
        assert self.server._BaseServer__shutdown_request is False
        with connect(self.server) as client:
            client.sendall(b"hello\n")
            self.server.serve_forever(60)
            assert receive(client) == b"HELLO\n"


@pytest.fixture
def scene(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> Iterator[Scene]:
    scene = Scene(ss, kind, make, trace)
    yield scene
    scene.release()


@sync
@each_mode
@pytest.mark.parametrize(
    "error",
    [OSError(24, "full"), ConnectionAbortedError(103, "gone"), TimeoutError("slow")],
    ids=str,
)
def test_get_request_os_error(scene: Scene, mode: str, error: OSError) -> None:
    """No request then: back to the loop, and it is no error."""
    scene.fail("get_request", error)
    assert scene.run(mode) == ["get_request"]
    assert scene.trace.names() == ["get_request"] + ["service_actions"] * (mode != "handle_request")


@sync
@each_mode
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()], ids=repr)
def test_get_request(scene: Scene, mode: str, error: BaseException) -> None:
    scene.fail("get_request", error)
    assert scene.run_raising(mode, error) == ["get_request"]


@sync
@each_mode
@each_error
def test_finish_request(scene: Scene, mode: str, error: Exception) -> None:
    """An Exception is handed to handle_error(), then the request is ended; the loop goes on."""
    scene.fail("finish_request", error)
    assert scene.run(mode) == [*GOT, *FINISH, "handle_error", *END]
    (event,) = scene.trace.named("handle_error")
    assert event.call == "handle_error(request, address)"
    assert event.exception == type(error).__name__


@sync
@each_mode
@each_error
def test_process_request(scene: Scene, mode: str, error: Exception) -> None:
    scene.fail("process_request", error)
    assert scene.run(mode) == [*GOT, "process_request", "handle_error", *END]


@sync
@each_mode
@each_ending
@pytest.mark.parametrize("name", FINISH)
def test_ending_while_processing(scene: Scene, mode: str, ending: BaseException, name: str) -> None:
    """Anything else ends the request without handle_error(), and is raised."""
    scene.fail(name, ending)
    called = scene.run_raising(mode, ending)
    assert called == [*GOT, *FINISH[: FINISH.index(name) + 1], *END]
    scene.check_usable()


@sync
@each_mode
@pytest.mark.parametrize("step", HANDLER_STEPS)
def test_handler(scene: Scene, mode: str, step: str) -> None:
    """finish() is called after an exception in handle(), not after one in setup()."""
    scene.fail(step, ValueError("boom"))
    assert scene.run(mode) == [*GOT, *FINISH, *HANDLER_STEPS[step], "handle_error", *END]


@sync
@each_mode
@pytest.mark.parametrize("step", HANDLER_STEPS)
def test_ending_in_handler(scene: Scene, mode: str, step: str) -> None:
    ending = scene.fail(step, SystemExit(3))
    assert scene.run_raising(mode, ending) == [*GOT, *FINISH, *HANDLER_STEPS[step], *END]
    scene.check_usable()


@sync
@each_mode
@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3)], ids=repr)
def test_verify_request(scene: Scene, mode: str, error: BaseException) -> None:
    scene.fail("verify_request", error)
    assert scene.run_raising(mode, error)[:2] == GOT
    scene.check_usable()


@pytest.mark.fastsock_only(reason="the request is ended although verify_request() raised")
@sync
@each_mode
@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3)], ids=repr)
def test_verify_request_ends_the_request(scene: Scene, mode: str, error: BaseException) -> None:
    scene.fail("verify_request", error)
    assert scene.run_raising(mode, error) == [*GOT, *END]


@sync
@each_mode
@pytest.mark.parametrize("error", [KeyError("again"), SystemExit(3)], ids=repr)
def test_handle_error(scene: Scene, mode: str, error: BaseException) -> None:
    first = scene.fail("handle", ValueError("boom"))
    scene.fail("handle_error", error)
    called = scene.run_raising(mode, error)
    assert called[:9] == [*GOT, *FINISH, *HANDLER_STEPS["handle"], "handle_error"]
    assert error.__context__ is first
    scene.check_usable()


@pytest.mark.fastsock_only(reason="the request is ended although handle_error() raised")
@sync
@each_mode
@pytest.mark.parametrize("error", [KeyError("again"), SystemExit(3)], ids=repr)
def test_handle_error_ends_the_request(scene: Scene, mode: str, error: BaseException) -> None:
    scene.fail("handle", ValueError("boom"))
    scene.fail("handle_error", error)
    assert scene.run_raising(mode, error)[9:] == END


@sync
@each_mode
@pytest.mark.parametrize("name", END)
def test_ending_of_a_request(scene: Scene, mode: str, name: str) -> None:
    """shutdown_request() is tried once more after handle_error(); then the error is raised."""
    error = scene.fail(name, ValueError("boom"))
    end = END[: END.index(name) + 1]
    called = scene.run_raising(mode, error)
    assert called == [*GOT, *FINISH, *HANDLER_STEPS["handle"], *end, "handle_error", *end]
    scene.check_usable()


@sync
@each_mode
def test_ending_of_a_rejected_request(ss: ModuleType, kind: Kind, scene: Scene, mode: str) -> None:
    type(scene.server).verify_request = lambda self, request, client_address: False
    error = scene.fail("shutdown_request", ValueError("boom"))
    assert scene.run_raising(mode, error) == ["get_request", "shutdown_request"]


@sync
def test_service_actions(scene: Scene) -> None:
    error = scene.fail("service_actions", ValueError("boom"))
    with pytest.raises(ValueError) as caught:
        scene.run("serve_forever")
    assert caught.value is error
    assert scene.called() == [*GOT, *FINISH, *HANDLER_STEPS["handle"], *END]
    with pytest.raises(ValueError):
        scene.server.serve_forever(0)
    assert scene.server._BaseServer__is_shut_down.is_set()
    scene.raising.clear()
    scene.server.shutdown()  # not running: returns at once


@sync
def test_handle_timeout(scene: Scene) -> None:
    error = scene.fail("handle_timeout", ValueError("boom"))
    scene.server.timeout = 0
    with pytest.raises(ValueError) as caught:
        scene.server.handle_request()
    assert caught.value is error


@sync
def test_server_close(scene: Scene) -> None:
    error = scene.fail("server_close", ValueError("boom"))
    with pytest.raises(ValueError) as caught, scene.server:
        pass
    assert caught.value is error
    del scene.raising["server_close"]


@sync
def test_with_statement_lets_exceptions_pass(scene: Scene) -> None:
    scene.trace.clear()
    with pytest.raises(KeyError), scene.server:
        raise KeyError
    assert scene.trace.names() == ["server_close"]


@sync
@each_mode
def test_handle_error_inside_the_exception(
    ss: ModuleType, kind: Kind, make: Make, mode: str
) -> None:
    """In handle_error() the exception is the current one: sys.exc_info(), a bare raise."""
    seen = []
    error = ValueError("boom")

    class Server(kind.server(ss)):
        def handle_error(self, request: Any, client_address: Any) -> None:
            seen.append(sys.exc_info()[1])
            raise  # noqa: PLE0704

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            raise error

    server = make(Server, Handler)
    with connect(server) as client:
        client.sendall(b"x")
        with pytest.raises(ValueError) as caught:
            getattr(server, mode)()
    assert caught.value is error
    assert seen == [error]
    assert sys.exc_info() == (None, None, None)


@sync
def test_loop_goes_on(ss: ModuleType, kind: Kind, make: Make) -> None:
    """After an error, a rejected request and a failed get_request the next one is served."""
    attempts = []

    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            request = super().get_request()
            attempts.append(1)
            if len(attempts) == 1:
                self.shutdown_request(request[0])
                raise OSError("nothing for you")
            return request

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return len(attempts) != 2

        def finish_request(self, request: Any, client_address: Any) -> None:
            if len(attempts) == 3:
                raise ValueError
            super().finish_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    server = make(Server, upper(kind.handler(ss)))
    with serving(server):
        for _ in range(3):
            with connect(server) as client:
                client.sendall(b"hello\n")
                if kind.stream:
                    assert ended(client)
        assert ask(server) == b"HELLO\n"
    assert len(attempts) == 4


def test_default_handle_error(
    ss: ModuleType, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    def handle(self: Any) -> None:
        raise ValueError("boom")

    server = make(ss.TCPServer, new("Handler", ss.BaseRequestHandler, handle=handle))
    with connect(server) as client:
        address = client.getsockname()
        server.handle_request()
        assert ended(client)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == lines[-1] == "-" * 40
    assert lines[1] == f"Exception occurred during processing of request from {address}"
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-2] == "ValueError: boom"
    assert any("in handle" in line for line in lines)


def test_default_handle_error_called_by_hand(
    ss: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    import socketserver

    texts = []
    for module in (ss, socketserver):
        try:
            raise KeyError("boom")
        except KeyError:
            module.BaseServer(None, None).handle_error("request", ("some", "where"))
        texts.append(capsys.readouterr())
    assert texts[0] == texts[1]


def test_errors_of_a_connection_that_is_gone(ss: ModuleType, make: Make) -> None:
    """shutdown_request() of a connection which the peer has reset, or which is closed already."""

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            self.request.close()

    server = make(ss.TCPServer, Handler)
    with connect(server) as client:
        server.handle_request()
        assert ended(client)
    client = connect(server)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    server.RequestHandlerClass = ss.BaseRequestHandler
    server.handle_request()
