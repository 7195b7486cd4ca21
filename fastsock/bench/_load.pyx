"""The client of the benchmark: one thread, epoll(7), C sockets, no GIL."""

from fastsock.bench._histogram import Histogram
from fastsock.bench._load_base import (
    DATAGRAM_TIMEOUT,
    MOST_CONNECTIONS,
    MOST_ERRORS,
    MOST_SECONDS,
    TIMEOUT,
    Address,
    Load,
)
from fastsock.bench._load_streams import StreamLoad
from fastsock.bench._load_datagrams import DatagramLoad

__all__ = [
    "DATAGRAM_TIMEOUT",
    "MOST_CONNECTIONS",
    "MOST_ERRORS",
    "MOST_SECONDS",
    "TIMEOUT",
    "Address",
    "DatagramLoad",
    "Histogram",
    "Load",
    "StreamLoad",
]
