"""What servers count, for Prometheus.

::

    from prometheus_client import REGISTRY, start_http_server

    REGISTRY.register(fastsock.metrics.Collector(server))
    start_http_server(9000)

Needs prometheus-client: ``pip install 'fastsock[metrics]'``. (Not in the standard library.)
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Iterator

from fastsock._servers import BaseServer
from fastsock._serving import _control_of
from fastsock._stats import Stats, stats_of
from fastsock._types import Any

try:
    from prometheus_client import core
    from prometheus_client.registry import Collector as _CollectorOfClient
except ImportError as _error:
    raise ImportError(
        "fastsock.metrics needs the package prometheus-client: pip install 'fastsock[metrics]'",
        name="prometheus_client",
    ) from _error

__all__ = ["Collector"]

_Base: Any = _CollectorOfClient
_LABELS = ("server", "transport")

# Name without the prefix, attribute of Stats, what it says.
_COUNTERS = (
    ("connections_accepted", "accepted", "Connections that were taken."),
    ("requests_finished", "finished", "Connections and datagrams that have been served."),
    ("requests_failed", "failed", "Requests whose handler has failed."),
    ("start_failures", "start_failures", "Threads and processes that could not be started."),
    ("received_bytes", "bytes_in", "Bytes received on connections."),
    ("sent_bytes", "bytes_out", "Bytes sent on connections."),
    ("datagrams_received", "datagrams_in", "Datagrams that were taken."),
    ("datagrams_sent", "datagrams_out", "Datagrams that were sent."),
    ("datagrams_truncated", "datagrams_truncated", "Datagrams longer than max_packet_size."),
    ("datagrams_dropped", "datagrams_dropped", "Datagrams that the kernel could not deliver."),
)
_GAUGES = (
    ("connections_active", "active", "Connections that are being served."),
    ("connections_peak", "peak", "The most connections that were served at a time."),
    ("threads_busy", "threads_busy", "Threads that serve a request."),
    ("threads_idle", "threads_idle", "Threads that wait for a request."),
    ("threads_peak", "threads_peak", "The most threads that served a request at a time."),
    ("children", "children", "Processes that serve a request, or have not been collected."),
    (
        "longest_running_seconds",
        "longest_running",
        "For how long the oldest request has been served.",
    ),
)
# Also the name of the label, and how its values are written.
_BY_LABEL = (
    (
        "requests_refused",
        "refused",
        "reason",
        "Connections and datagrams that were not served.",
    ),
    ("timeouts", "timed_out", "deadline", "Deadlines that have passed."),
    (
        "accept_errors",
        "accept_errors",
        "errno",
        "Failures to accept a connection or to receive a datagram.",
    ),
)


class _Entry:
    """A server of a collector, and the labels that it has had."""

    def __init__(self, server: BaseServer, name: str | None) -> None:
        self.server = weakref.ref(server)
        self.name = name
        self.labels: tuple[str, str] | None = None

    def label(self, server: BaseServer, taken: set[tuple[str, str]]) -> tuple[str, str]:
        """Labels that no other server has; the same as before, if these are still the server's."""
        wanted = (self.name or _address(server), _transport(server))
        labels = self.labels
        if labels is None or labels in taken or not _is_variant(labels, wanted):
            labels, number = wanted, 1
            while labels in taken:
                number += 1
                labels = (f"{wanted[0]}#{number}", wanted[1])
        self.labels = labels
        taken.add(labels)
        return labels


class Collector(_Base):  # type: ignore[misc]
    """The counts of servers, to be registered with a registry of prometheus_client.

    Each metric begins with ``fastsock_`` and has the labels ``server``, the address that the server
    is bound to, and ``transport``: tcp, udp, unix, unixgram, other. A second server with the same
    address (SO_REUSEPORT) has ``#2`` behind it. Servers are not kept alive; one that is gone is no
    longer told of. May be used from any thread.
    """

    def __init__(self, *servers: BaseServer) -> None:
        """Tell of these servers.

        Raises:
            TypeError: something is no server.
        """
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()
        for server in servers:
            self.add(server)

    def add(self, server: BaseServer, name: str | None = None) -> None:
        """Tell of a server, too; nothing is done if it is there.

        Args:
            server: the server.
            name: for the label ``server``; None: its address.

        Raises:
            TypeError: it is no server of fastsock's.
        """
        if not isinstance(server, BaseServer):
            raise TypeError(f"not a fastsock server: {server!r}")
        with self._lock:
            if all(entry.server() is not server for entry in self._entries):
                self._entries.append(_Entry(server, name))

    def remove(self, server: BaseServer) -> None:
        """Do not tell of a server any more."""
        with self._lock:
            self._entries = [entry for entry in self._entries if entry.server() is not server]

    def describe(self) -> Iterator[Any]:
        """The metrics without values, for the registry: nothing is asked of the servers."""
        yield from _families([])

    def collect(self) -> Iterator[Any]:
        """The metrics, for the registry."""
        taken: set[tuple[str, str]] = set()
        found = []
        with self._lock:
            for entry in list(self._entries):
                server = entry.server()
                if server is None:
                    self._entries.remove(entry)
                    continue
                found.append((entry.label(server, taken), stats_of(server, _control_of(server))))
        yield from _families(found)


def _families(found: list[tuple[tuple[str, str], Stats]]) -> Iterator[Any]:
    families: tuple[tuple[Any, Any], ...] = (
        (core.CounterMetricFamily, _COUNTERS),
        (core.GaugeMetricFamily, _GAUGES),
    )
    for kind, metrics in families:
        for name, attribute, text in metrics:
            family = kind(f"fastsock_{name}", text, labels=_LABELS)
            for labels, stats in found:
                family.add_metric(labels, getattr(stats, attribute))
            yield family
    for name, attribute, label, text in _BY_LABEL:
        family = core.CounterMetricFamily(f"fastsock_{name}", text, labels=(*_LABELS, label))
        for labels, stats in found:
            for value, count in getattr(stats, attribute).items():
                family.add_metric((*labels, _name(value)), count)
        yield family
    family = core.HistogramMetricFamily(
        "fastsock_request_duration_seconds",
        "How long requests have taken, from their being taken to their end.",
        labels=_LABELS,
    )
    for labels, stats in found:
        total, buckets = 0, []
        for bound, count in stats.latencies:
            total += count
            buckets.append((_bound(bound), total))
        family.add_metric(labels, buckets, stats.latency_sum)
    yield family


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else f"{seconds:.9g}"


def _name(value: object) -> str:
    """Of an errno, or of what has one."""
    return errno.errorcode.get(value, str(value)) if isinstance(value, int) else str(value)


def _is_variant(labels: tuple[str, str], wanted: tuple[str, str]) -> bool:
    return labels[1] == wanted[1] and (
        labels[0] == wanted[0] or labels[0].startswith(f"{wanted[0]}#")
    )


def _address(server: BaseServer) -> str:
    address: Any = getattr(server, "server_address", None)
    if isinstance(address, tuple) and len(address) >= 2:
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        address = address.decode(errors="replace")
    if isinstance(address, str):
        return address.replace("\0", "@", 1)  # as ss(8) writes an abstract name
    return str(address)


def _transport(server: BaseServer) -> str:
    sock: Any = getattr(server, "socket", None)
    family, kind = getattr(sock, "family", None), getattr(sock, "type", None)
    names = {
        ("AF_INET", "SOCK_STREAM"): "tcp",
        ("AF_INET6", "SOCK_STREAM"): "tcp",
        ("AF_INET", "SOCK_DGRAM"): "udp",
        ("AF_INET6", "SOCK_DGRAM"): "udp",
        ("AF_UNIX", "SOCK_STREAM"): "unix",
        ("AF_UNIX", "SOCK_DGRAM"): "unixgram",
    }
    return names.get((getattr(family, "name", ""), getattr(kind, "name", "")), "other")
