"""Functions run as handlers of a server, in threads, in greenlets, and mixed."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

from support import TIMEOUT, Background, connect, handling, load_implementation, serving, wait_until

#: what the servers of a cast are: of each kind one, of which functions are handlers in turn
CASTS = {
    "threads": ["threading"],
    "tasks": ["multiplexing"],
    "hubs": ["multiplexing", "multiplexing"],
    "mixed": ["multiplexing", "threading", "multiplexing", "thread"],
}


def module_of(kind: str, fastsock_dir: str | None = None) -> Any:
    """fastsock, or a module with its names whose threads are greenlets."""
    spec = {"threading": "fastsock", "multiplexing": "multiplex"}[kind]
    return load_implementation(spec, fastsock_dir)


class Job:
    """A function that is run as a handler."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = lambda: function(*args)
        self.value: Any = None
        self.error: BaseException | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            self.value = self.call()
        except BaseException as error:
            self.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.over.set()

    def result(self, timeout: float = TIMEOUT) -> Any:
        assert self.over.wait(timeout), f"still running after {timeout} s"
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.value


class Crew:
    """A server that runs; its handlers do what they are given."""

    def __init__(self, kind: str, fastsock_dir: str | None, **attributes: Any) -> None:
        module = module_of(kind, fastsock_dir)
        jobs: dict[int, Job] = {}
        numbers = itertools.count()
        self._jobs, self._numbers = jobs, numbers
        self.stack = contextlib.ExitStack()

        def handle(self: Any) -> None:
            jobs.pop(int(self.rfile.readline())).run()

        base = module.ThreadingTCPServer
        server_class = type("Server", (base,), {"request_queue_size": 512, **attributes})
        self.server = server_class(("127.0.0.1", 0), handling(module, handle))
        self.stack.callback(self.server.server_close)
        self.loop = self.stack.enter_context(serving(self.server))

    def start(self, function: Callable[..., Any], *args: Any) -> Job:
        job = Job(function, *args)
        number = next(self._numbers)
        self._jobs[number] = job
        client = self.stack.enter_context(connect(self.server))
        client.sendall(b"%d\n" % number)
        return job

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.start(function, *args).result()

    def stop(self) -> None:
        """End serve_forever(), and with it, of some servers, the handlers."""
        self.server.shutdown()
        self.loop.result()

    def close(self) -> None:
        self.stack.close()


class _Threads:
    """The same with plain threads."""

    def start(self, function: Callable[..., Any], *args: Any) -> Any:
        return Background(function, *args)

    def close(self) -> None:
        pass


class Cast:
    """Several crews, of which each is to do something in turn."""

    def __init__(self, kinds: list[str], fastsock_dir: str | None) -> None:
        self.crews: list[Any] = [
            _Threads() if kind == "thread" else Crew(kind, fastsock_dir) for kind in kinds
        ]
        self._turns = itertools.cycle(self.crews)

    def start(self, function: Callable[..., Any], *args: Any) -> Any:
        return next(self._turns).start(function, *args)

    def start_in_order(self, of: Any, count: int, function: Callable[..., Any]) -> list[Any]:
        """Start function(0), function(1), ...: each when the one before waits for a primitive."""
        before = of._waiting
        jobs = []
        for number in range(count):
            jobs.append(self.start(function, number))
            wait_until(lambda number=number: of._waiting == before + number + 1)
        return jobs

    def close(self) -> None:
        for crew in self.crews:
            crew.close()


def elapsed(function: Callable[..., Any], *args: Any, **keywords: Any) -> tuple[Any, float]:
    """What a call returns, and the seconds that it took."""
    begin = time.monotonic()
    result = function(*args, **keywords)
    return result, time.monotonic() - begin
