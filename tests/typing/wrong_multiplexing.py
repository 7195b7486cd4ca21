# ruff: noqa: B018, F401
"""Mistakes in the use of fastsock.multiplexing that a type checker has to find."""

import fastsock
from fastsock import MultiplexingForkingServer, multiplexing  # error: attr-defined
from fastsock.multiplexing import Event, Lock, Queue


class Server(fastsock.MultiplexingTCPServer):
    daemon_threads = None  # error: assignment
    slow_handler_threshold = "0.1"  # error: assignment

    def process_request_thread(self) -> None: ...  # error: override


def function(number: int) -> str:
    return str(number)


def functions(handler: type[fastsock.BaseRequestHandler]) -> int:
    multiplexing.sleep("1")  # error: arg-type
    multiplexing.sleep()  # error: call-arg
    multiplexing.wait(1, reading=True)  # error: call-arg
    multiplexing.wait(1, read=True, timeout="1")  # error: arg-type
    multiplexing.create_connection("localhost:80")  # error: arg-type
    multiplexing.create_connection(("localhost", 80), "1")  # error: arg-type
    multiplexing.create_connection(("localhost", 80)).nothing  # error: attr-defined
    multiplexing.to_thread(function)  # error: call-arg
    multiplexing.to_thread(function, "1")  # error: arg-type
    multiplexing.to_thread(function(1))  # error: arg-type
    multiplexing.spawn(function, 1, 2)  # error: call-arg
    multiplexing.spawn(function, number="1")  # error: arg-type
    multiplexing.spawn(function, 1).join("1")  # error: arg-type
    multiplexing.MultiplexingUnixStreamServer(("", 0), handler)  # error: arg-type
    fastsock.MultiplexingTCPServer(("", 0), int)  # error: arg-type
    fastsock.install(True)  # error: call-arg
    fastsock.install(multiplex="yes")  # error: arg-type
    multiplexing.nothing()  # error: attr-defined
    return multiplexing.to_thread(function, 1)  # error: return-value


def primitives(items: Queue[int]) -> None:
    Lock(1)  # error: call-arg
    Lock().acquire(timeout="1")  # error: arg-type
    Event().wait("1")  # error: arg-type
    items.put("x")  # error: arg-type
    items.get().nothing  # error: attr-defined
    items.get(timeout="1")  # error: arg-type
    Queue("3")  # error: arg-type
    items.unfinished_tasks = 3  # error: misc
