"""Lock, Event and Queue, where signals and forks come in between."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import Cast, module_of
from support import TIMEOUT, Background, new, wait_until

from fastsock.multiplexing import Event, Lock, Queue, wait


@pytest.fixture
def on_signal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """on_signal(handler, of): handler() is called in the main thread once it waits for `of`.

    With unnoticed=True the signal ends no system call of that thread: it is another's.
    """
    senders = []
    main = threading.get_ident()

    def on_signal(handler: Callable[[], Any], of: Any, unnoticed: bool = False) -> None:
        called = threading.Event()

        def send() -> None:
            wait_until(lambda: of._waiting)
            if unnoticed:
                signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
                return
            while not called.is_set():  # one may come right before the system call
                signal.pthread_kill(main, signal.SIGUSR1)
                called.wait(0.05)

        def on_call(*signal: Any) -> None:
            if not called.is_set():
                called.set()
                handler()

        signal.signal(signal.SIGUSR1, on_call)
        senders.append(Background(send))

    before = signal.getsignal(signal.SIGUSR1)
    yield on_signal
    for sender in senders:
        sender.result()
    signal.signal(signal.SIGUSR1, before)


def test_interrupted_when_it_was_given_the_lock(on_signal: Any) -> None:
    """By the very handler: it is free again."""
    lock = Lock()
    lock.acquire()

    def release_and_raise() -> None:
        lock.release()
        assert lock.locked()
        raise LookupError

    on_signal(release_and_raise, lock)
    with pytest.raises(LookupError):
        lock.acquire()
    assert not lock.locked()
    assert lock._waiting == 0


def test_interrupted_while_it_waits(on_signal: Any) -> None:
    lock, event, items = Lock(), Event(), Queue[int]()

    def interrupt() -> None:
        raise LookupError

    lock.acquire()
    for thing, await_it in ((lock, lock.acquire), (event, event.wait), (items, items.get)):
        on_signal(interrupt, thing)
        with pytest.raises(LookupError):
            await_it()
        assert thing._waiting == 0
    lock.release()
    assert not lock.locked()


def test_interrupted_when_it_was_given_an_item(on_signal: Any) -> None:
    items = Queue[str]()

    def put_and_raise() -> None:
        items.put("first")
        items.put("second")
        raise LookupError

    on_signal(put_and_raise, items)
    with pytest.raises(LookupError):
        items.get()
    assert [items.get_nowait(), items.get_nowait()] == ["first", "second"]


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("unnoticed", [False, True])
def test_a_signal_while_a_hook_waits(
    on_signal: Any, time_limit: None, raises: bool, unnoticed: bool
) -> None:
    """Its handler runs, and may release the lock that the loop waits for, or end the loop.

    Also if the signal ends no wait: it came to another thread, or right before epoll_wait(2).
    """
    lock, seen = Lock(), []
    lock.acquire()

    def handler() -> None:
        lock.release()
        if raises:
            raise LookupError

    def service_actions(self: Any) -> None:
        self._BaseServer__shutdown_request = True
        seen.append(lock.acquire(timeout=TIMEOUT))

    base = module_of("multiplexing").ThreadingTCPServer
    server_class = new("Server", base, service_actions=service_actions)
    on_signal(handler, lock, unnoticed)
    with server_class(("127.0.0.1", 0), None) as server:
        if raises:
            with pytest.raises(LookupError):
                server.serve_forever(0.001)
        else:
            server.serve_forever(0.001)
    assert seen == ([] if raises else [True])
    assert lock.locked() != raises


class Told:
    """What on_signal() asks, about the hub of a server that runs."""

    def __init__(self, server: Any, ask: Callable[[Any], Any]) -> None:
        self.server = server
        self.ask = ask

    @property
    def _waiting(self) -> bool:
        tasks = vars(self.server).get("_fastsock_tasks")
        return bool(tasks is not None and tasks.hub.active and self.ask(tasks.hub))


@pytest.mark.parametrize("unnoticed", [False, True])
def test_a_signal_while_a_hook_waits_for_a_descriptor(
    on_signal: Any, pair: tuple[socket.socket, socket.socket], time_limit: None, unnoticed: bool
) -> None:
    near, far = pair
    seen = []

    def service_actions(self: Any) -> None:
        self._BaseServer__shutdown_request = True
        seen.append(wait(near, read=True, timeout=TIMEOUT))

    base = module_of("multiplexing").ThreadingTCPServer
    with new("Server", base, service_actions=service_actions)(("127.0.0.1", 0), None) as server:
        on_signal(lambda: far.send(b"x"), Told(server, lambda hub: hub.foreign_waits), unnoticed)
        server.serve_forever(0.001)
    assert seen == [True]


def test_a_signal_ends_the_wait_of_the_loop(on_signal: Any, time_limit: None) -> None:
    """However long it would last."""
    seen: list[bool] = []

    def handler() -> None:
        seen.append(True)
        server.shutdown()

    with module_of("multiplexing").ThreadingTCPServer(("127.0.0.1", 0), None) as server:
        on_signal(handler, Told(server, lambda hub: hub.asleep))
        server.serve_forever(10 * TIMEOUT)
    assert seen == [True]


def in_child(check: Callable[[], Any]) -> bool:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def test_in_a_forked_child(cast: Cast) -> None:
    """Nothing is given to those who wait in the parent."""
    lock, event, items = Lock(), Event(), Queue[str]()
    lock.acquire()
    jobs = cast.start_in_order(lock, 3, lambda number: lock.acquire())
    jobs += cast.start_in_order(event, 3, lambda number: event.wait())
    jobs += cast.start_in_order(items, 3, lambda number: items.get())

    def check() -> Any:
        lock.release()
        event.set()
        items.put("item")
        return not lock.locked() and lock.acquire() and event.wait() and items.get(False) == "item"

    assert in_child(check)
    event.set()
    for number in range(3):
        items.put(str(number))
        lock.release()
    assert [job.result() for job in jobs] == [True] * 6 + ["0", "1", "2"]
