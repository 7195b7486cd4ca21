"""When a green thread library has put its own sockets and threads in place of Python's.

gevent's ``monkey.patch_all()`` and eventlet's ``monkey_patch()`` replace the blocking primitives
by cooperative ones. A native poll would then stop every green thread of the process, so the serve
loop waits through the replaced ``select`` module instead, and takes requests through
``socket.accept()``. A program that puts a selector of its own into ``_ServerSelector`` gets that.
"""

from __future__ import annotations

import _socket
import _thread
import select
import selectors
import socket
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType

from fastsock._types import Any

#: (descriptors, milliseconds or -1) -> the descriptors that are readable
Wait = Callable[[Sequence[int], int], Sequence[int]]

#: what the standard library's loop would use, under the name that programs know it by
ServerSelector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)


def waiter(selector: Any) -> Wait | None:
    """How to wait for readable descriptors; None: natively, with poll(2).

    selector is the current value of the ``_ServerSelector`` that programs see.
    """
    if selector is not ServerSelector:
        return _through(selector)
    if (
        isinstance(_thread.start_new_thread, BuiltinFunctionType)
        and isinstance(getattr(select, "poll", None), BuiltinFunctionType)
        and isinstance(socket.socket, type)
        and issubclass(socket.socket, _socket.socket)
    ):
        return None
    return wait


def wait(descriptors: Sequence[int], milliseconds: int) -> Sequence[int]:
    """Wait through the select module as it is now: the interpreter's, or a replaced one."""
    timeout = None if milliseconds < 0 else milliseconds
    if not hasattr(select, "poll"):  # eventlet takes it away
        return select.select(descriptors, [], [], None if timeout is None else timeout / 1000)[0]
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poller.poll(timeout)]


def _through(selector_class: Any) -> Wait:
    def wait(descriptors: Sequence[int], milliseconds: int) -> Sequence[int]:
        with selector_class() as selector:
            for descriptor in descriptors:
                selector.register(descriptor, selectors.EVENT_READ)
            ready = selector.select(None if milliseconds < 0 else milliseconds / 1000)
        return [key.fd for key, _ in ready]

    return wait
