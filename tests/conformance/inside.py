"""Functions that are called in the thread of a request, or in its greenlet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from support import TIMEOUT, connect, is_fastsock, multiplexes, new


class Call:
    """A function that is called by the handler of one request."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.begun = threading.Event()
        self.thread: threading.Thread
        self.ident = 0
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        self.thread, self.ident = threading.current_thread(), threading.get_ident()
        self.begun.set()
        try:
            self.value = self.function()
        except Exception as error:
            self.error = error

    def result(self) -> Any:
        assert self.begun.wait(TIMEOUT)
        self.join()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.value

    def join(self) -> None:
        if self.thread is not threading.current_thread():  # else it was a greenlet of ours
            self.thread.join(TIMEOUT)
            assert not self.thread.is_alive()


class Inside:
    """Calls functions in handlers: a request each, accepted in the thread of the caller."""

    def __init__(self, ss: ModuleType, make: Callable[..., Any]) -> None:
        self.reuses = is_fastsock(ss)
        self.multiplexes = multiplexes(ss)
        self.next: list[Call] = []
        handler = new("Handler", ss.BaseRequestHandler, handle=lambda handler: self._take().run())
        self.server = make(ss.ThreadingTCPServer, handler)

    def _take(self) -> Call:
        return self.next.pop()

    def start(self, function: Callable[[], Any]) -> Call:
        call = Call(function)
        self.next.append(call)
        with connect(self.server):
            self.server.handle_request()
        assert call.begun.wait(TIMEOUT)
        return call

    def __call__(self, function: Callable[[], Any]) -> Any:
        return self.start(function).result()

    def after(self, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        """What second() returns after a request that called first(); by the same thread, if any."""
        for _ in range(20):
            calls = []
            for function in (first, second):
                calls.append(self.start(function))
                value = calls[-1].result()
            if not self.reuses or calls[0].ident == calls[1].ident:
                break
        return value
