# ruff: noqa: F821
"""What a type checker knows of fastsock.multiplexing."""

import socket

import fastsock
from fastsock import multiplexing
from fastsock.multiplexing import Event, Lock, Queue


def function(number: int, *, text: str = "") -> list[bytes]:
    return [text.encode()] * number


def functions(sock: socket.socket) -> None:
    reveal_type(multiplexing.sleep(1))  # -> None
    reveal_type(multiplexing.wait(sock, read=True))  # -> bool
    reveal_type(multiplexing.wait(3, write=True, timeout=0.5))  # -> bool
    reveal_type(multiplexing.create_connection(("localhost", 80)))  # -> Connection
    reveal_type(multiplexing.create_connection((None, "http"), None))  # -> Connection
    reveal_type(multiplexing.to_thread(function, 3, text="x"))  # -> list[bytes]
    reveal_type(multiplexing.to_thread(lambda: 3))  # -> int
    spawned = multiplexing.spawn(function, 3)
    reveal_type(spawned)  # -> Spawned
    reveal_type(spawned.join(1))  # -> bool
    reveal_type(spawned.is_alive())  # -> bool


def primitives(items: Queue[bytes]) -> None:
    lock, event = Lock(), Event()
    reveal_type(lock.acquire(timeout=1))  # -> bool
    reveal_type(lock.acquire(False))  # -> bool
    reveal_type(lock.release())  # -> None
    reveal_type(lock.locked())  # -> bool
    with lock as held:
        reveal_type(held)  # -> bool
    reveal_type(event.is_set())  # -> bool
    reveal_type(event.set())  # -> None
    reveal_type(event.clear())  # -> None
    reveal_type(event.wait(0.5))  # -> bool
    reveal_type(items.get())  # -> bytes
    reveal_type(items.get(timeout=3))  # -> bytes
    reveal_type(items.get_nowait())  # -> bytes
    reveal_type(items.put(b"x"))  # -> None
    reveal_type(items.put_nowait(b"x"))  # -> None
    reveal_type(items.qsize())  # -> int
    reveal_type(items.empty())  # -> bool
    reveal_type(items.full())  # -> bool
    reveal_type(items.task_done())  # -> None
    reveal_type(items.join())  # -> None
    reveal_type(items.maxsize)  # -> int
    reveal_type(items.unfinished_tasks)  # -> int
    reveal_type(Queue[str](3))  # -> Queue[str]


def servers(
    tcp: fastsock.MultiplexingTCPServer, unix: multiplexing.MultiplexingUnixStreamServer
) -> None:
    reveal_type(tcp.daemon_threads)  # -> bool
    reveal_type(tcp.block_on_close)  # -> bool
    reveal_type(tcp.slow_handler_threshold)  # -> float
    reveal_type(tcp.request_queue_size)  # -> int
    reveal_type(tcp.serve_forever())  # -> None
    reveal_type(tcp.server_close())  # -> None
    reveal_type(tcp.handle_request())  # -> None
    reveal_type(unix.socket)  # -> socket
    reveal_type(fastsock.install())  # -> None
    with tcp as entered:
        reveal_type(entered)  # -> MultiplexingTCPServer
