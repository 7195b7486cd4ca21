"""The client of the benchmark: one thread, epoll(7), C sockets, no GIL.

Loopback only. Every byte that is answered is compared with what had to come::

    with StreamLoad(("127.0.0.1", port), "lines", 50, b"hello\\n") as load:
        load.open(10)  # seconds at most
        load.run(0.5)  # warm-up
        load.run(2)
        print(load.operations / load.seconds, load.latency.percentile(0.99) / 1e3, load.errors)
"""

from fastsock.bench._histogram import Histogram as Histogram
from fastsock.bench._load_base import DATAGRAM_TIMEOUT as DATAGRAM_TIMEOUT
from fastsock.bench._load_base import MOST_CONNECTIONS as MOST_CONNECTIONS
from fastsock.bench._load_base import MOST_ERRORS as MOST_ERRORS
from fastsock.bench._load_base import MOST_SECONDS as MOST_SECONDS
from fastsock.bench._load_base import TIMEOUT as TIMEOUT
from fastsock.bench._load_base import Address as Address
from fastsock.bench._load_base import Load as Load
from fastsock.bench._load_datagrams import DatagramLoad as DatagramLoad
from fastsock.bench._load_streams import StreamLoad as StreamLoad
