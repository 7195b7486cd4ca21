"""``lingering_close``: a connection is closed when its peer has read what was written.

close(2) of a connection with unread input makes the kernel reset it, and a reset throws away what
the peer has not read yet. So what still comes is read, and dropped, before.
"""

from __future__ import annotations

import contextlib
import os
import time
from _socket import socket as _socket_type

from fastsock import _ending, _plain, _visitors
from fastsock._types import Any

#: how much is dropped, in bytes, and for how many seconds it is waited for
MOST = 1 << 16
SECONDS = 2.0


def linger(request: Any) -> None:
    """Drop what comes until the peer closes, within limits. Its writing has been shut down."""
    if not isinstance(request, _socket_type) or (descriptor := request.fileno()) < 0:
        return
    if not _ending.may_have_replied(request):
        return  # there is no reply to be lost: one that was refused is not to keep the loop
    deadline = time.monotonic() + SECONDS
    # A copy: its number does not become somebody else's while it is waited for.
    with contextlib.suppress(OSError):
        copy = os.dup(descriptor)
        try:
            _drop(copy, deadline)
        finally:
            os.close(copy)


def _drop(descriptor: int, deadline: float) -> None:
    wait = _visitors.waiting()  # how a greenlet does
    most = MOST
    while most > 0:
        count = _ending.drop(descriptor, most)
        if count == 0:
            return
        if count > 0:
            most -= count
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return
        if wait is not None:
            _visitors.wait_by(wait, linger, descriptor, False, left)
        else:
            _plain.wait([descriptor], int(left * 1000) + 1)
