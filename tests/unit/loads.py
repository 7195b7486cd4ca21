"""What the tests of the load share."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hostile import Streams

from fastsock.bench._load import StreamLoad

LINE = b"0123456789abcde\n"
LONG = 10.0  # seconds, of a run that a count ends


def ipv6_available() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6_available(), reason="no ::1")
each_kind = pytest.mark.parametrize("kind", ["once", "lines"])


def echoing(answer: Any, kind: str, where: str = "127.0.0.1") -> Streams:
    return Streams(answer, len(LINE), where, lasting=kind == "lines")


def opened(address: Any, kind: str, connections: int = 1, **options: Any) -> StreamLoad:
    load = StreamLoad(address, kind, connections, LINE, **options)
    load.open(LONG)
    return load


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
