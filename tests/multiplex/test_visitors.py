"""Who waits for a connection of another hub than its own, while that is closed or given away."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, wait_until
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the number of its error."""
    try:
        return call(*arguments)
    except OSError as error:
        return error.errno


CALLS: dict[str, Callable[[Any], Any]] = {
    "recv": lambda handler: handler.request.recv(10),
    "recv_into": lambda handler: handler.request.recv_into(bytearray(10)),
    "recvmsg": lambda handler: handler.request.recvmsg(10),
    "readline": lambda handler: handler.rfile.readline(),
    "sendall": lambda handler: handler.request.sendall(bytes(20_000_000)),
    "sendmsg": lambda handler: handler.request.sendmsg([bytes(20_000_000)]),
}

END: dict[str, Callable[[Any], Any]] = {
    "close": lambda request: request._real_close(),  # as with the last file of it
    "detach": lambda request: os.close(request.detach()),
}


@pytest.fixture
def serve(fastsock_dir: str | None, time_limit: None, nothing_left_over: None) -> Iterator[Serve]:
    module = module_of("multiplexing", fastsock_dir)
    with contextlib.ExitStack() as stack:

        def serve(handle: Callable[[Any], Any], *args: Any, **attributes: Any) -> Served:
            served = Served(module, handle, *args, daemon_threads=True, **attributes)
            stack.callback(served.close)
            return served

        yield serve


def foreign_waits(served: Served) -> int:
    count: int = served.server._fastsock_tasks.hub.foreign_waits
    return count


@pytest.fixture
def pair_of_servers(serve: Serve) -> Any:
    """(kept, tell, visit): the handlers of one server, a function that has its loop call another,
    and one that has a task of the second server call a function."""
    kept: list[Any] = []
    orders: list[Callable[[], object]] = []
    arrived = multiplexing.Event()
    done = threading.Event()
    visits: list[Callable[[], object]] = []

    def keep(self: Any) -> None:
        kept.append(self)
        assert arrived.wait(TIMEOUT)
        orders.pop()()
        done.set()

    def visit(self: Any) -> None:
        self.rfile.readline()
        visits.pop()()

    first, second = serve(keep), serve(visit)

    def tell(order: Callable[[], object]) -> None:
        orders.append(order)
        arrived.set()
        assert done.wait(TIMEOUT)

    def send(call: Callable[[], object]) -> None:
        visits.append(call)
        second.connect(b"go\n")
        wait_until(lambda: foreign_waits(second))

    client = first.connect()
    wait_until(lambda: kept)
    return kept[0], client, tell, send


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("ends", END)
def test_a_task_of_another_hub_is_woken(
    pair_of_servers: Any, call: str, ends: str, handed_over: bool
) -> None:
    handler, client, tell, send = pair_of_servers
    found: list[Any] = []
    if handed_over:
        handler.request.getpeername()
    send(lambda: found.append(outcome(CALLS[call], handler)))

    tell(lambda: END[ends](handler.request))
    wait_until(lambda: found)
    if call == "sendmsg":  # as of the system call: the next one meets the error
        assert 0 < found[0] < 20_000_000
        found = [outcome(CALLS[call], handler)]
    assert found == [errno.EBADF]
    while client.recv(1 << 20):
        pass  # nobody has the connection any more


def test_its_number_is_somebody_elses(pair_of_servers: Any) -> None:
    """Who waits for the connection gets none of what comes for the next one of that number."""
    handler, _, tell, send = pair_of_servers
    found: list[Any] = []
    others = list(socket.socketpair())
    send(lambda: found.append(outcome(handler.request.recv, 10)))

    def take_away() -> None:
        number = handler.request.fileno()
        handler.request._real_close()
        os.dup2(others[0].fileno(), number)
        others.append(socket.socket(fileno=number))
        others[1].send(b"theirs")

    tell(take_away)
    wait_until(lambda: found)
    assert found == [errno.EBADF]
    assert others[2].recv(10) == b"theirs"
    for sock in others:
        sock.close()


@pytest.mark.parametrize("ends", END)
def test_a_hook_of_the_loop_is_woken(serve: Serve, ends: str) -> None:
    """It waits for a connection that a task closes: the loop goes on."""
    kept: list[Any] = []
    asleep: list[Any] = []
    found: list[Any] = []
    go_on = multiplexing.Event()

    def handle(self: Any) -> None:
        if self.rfile.readline() != b"keep\n":
            self.wfile.write(b"hello\n")
            return
        kept.append(self.request)
        self.wfile.write(b"kept\n")
        assert go_on.wait(TIMEOUT)
        END[ends](self.request)

    def verify_request(self: Any, request: Any, address: Any) -> bool:
        if kept and not asleep:
            asleep.append(request)
            found.append(outcome(kept[0].recv, 10))
        return True

    served = serve(handle, verify_request=verify_request)
    assert served.connect(b"keep\n").recv(10) == b"kept\n"
    second = served.connect(b"hello\n")
    wait_until(lambda: foreign_waits(served))
    go_on.set()
    assert second.recv(10) == b"hello\n"
    assert found == [errno.EBADF]


@pytest.mark.parametrize("ends", END)
def test_a_socket_of_get_request(serve: Serve, ends: str) -> None:
    """One that is no Connection, closed by a thread that has no tasks."""
    kept: list[Any] = []
    found: list[Any] = []

    def get_request(self: Any) -> Any:
        return self.socket.accept()

    def handle(self: Any) -> None:
        kept.append(self.request)
        found.append(outcome(self.request.recv, 10))

    served = serve(handle, base="BaseRequestHandler", get_request=get_request)
    client = served.connect()
    wait_until(lambda: foreign_waits(served))
    END[ends](kept[0])
    wait_until(lambda: found)
    assert found == [errno.EBADF]
    assert client.recv(10) == b""
