"""What a server says about itself: ``stats()`` and ``connections``."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastsock._control import Control
from fastsock._datagram_socket import counts_of, sent_by
from fastsock._ledger import Record, View, views
from fastsock._types import Any
from fastsock._worker import Pool


@dataclass(frozen=True)
class Stats:
    """A snapshot of what a server counts; see ``BaseServer.stats()``.

    Connections are also requests of other kinds, but not datagrams. What a child process of a
    forking server has received and sent is counted when it ends.

    Attributes:
        accepted: connections that were taken, those included that were refused then.
        active: those that are being served.
        peak: the most that were at a time.
        finished: those that have been served, and datagrams that have.
        failed: requests whose handler has raised an exception, or whose child process has ended
            with another status than 0.
        refused: how many connections and datagrams were not served, by reason: "verify_request",
            "handle_truncated" (they returned false).
        timed_out: how often a deadline has passed, by its name.
        accept_errors: how often accept(2) or recvfrom(2) failed, by errno.
        start_failures: how often a thread or a process for a request could not be started.
        bytes_in, bytes_out: received and written by handlers on connections; of TLS connections
            whatever TCP has carried.
        datagrams_in: how many were taken.
        datagrams_out: how many were sent by the server's socket.
        datagrams_truncated: how many of those taken were longer than max_packet_size.
        datagrams_dropped: how many the kernel could not deliver, see
            ``UDPServer.datagram_counts()``; 0 when it cannot be asked (any more).
        threads_busy: threads of a ThreadingMixIn that serve a request.
        threads_idle: those that wait for one.
        threads_peak: the most that were busy at a time.
        children: processes of a ForkingMixIn that serve a request, or have not been collected.
        longest_running: seconds for which the oldest of the active has been served, or a datagram
            by a server without threads or processes; 0.0: there is none.
        latencies: how many requests have lasted for less than so many seconds, but not less than
            the bound before, as (seconds, count) in ascending order; the last bound is infinite.
        latency_sum: seconds that those have lasted together.
    """

    accepted: int
    active: int
    peak: int
    finished: int
    failed: int
    refused: dict[str, int]
    timed_out: dict[str, int]
    accept_errors: dict[int, int]
    start_failures: int
    bytes_in: int
    bytes_out: int
    datagrams_in: int
    datagrams_out: int
    datagrams_truncated: int
    datagrams_dropped: int
    threads_busy: int
    threads_idle: int
    threads_peak: int
    children: int
    longest_running: float
    latencies: tuple[tuple[float, int], ...]
    latency_sum: float


class LiveConnection:
    """A connection that a server serves, or has served; see ``BaseServer.connections``.

    Keeps nothing of the connection.

    Attributes:
        since: when it was taken, in seconds as of ``time.time()``.
    """

    __slots__ = ("_view", "since")

    def __init__(self, view: View) -> None:
        self._view = view
        self.since: float = time.time() - view.seconds

    @property
    def client_address(self) -> Any:
        """The peer's address as get_request() returned it."""
        return self._view.client_address

    @property
    def is_live(self) -> bool:
        """Whether it has not ended yet."""
        return self._view.is_live

    @property
    def seconds(self) -> float:
        """Seconds since it was taken."""
        return self._view.seconds

    @property
    def bytes_in(self) -> int:
        """How many bytes its handler has received; of a TLS connection, what TCP has carried.

        0 while a child process serves it.
        """
        return self._view.bytes_received

    @property
    def bytes_out(self) -> int:
        """How many bytes its handler has written; see bytes_in."""
        return self._view.bytes_sent

    @property
    def state(self) -> str:
        """What its handler does.

        "idle": it waits for a message, of which nothing has come; "reading": for the rest of one;
        "writing": until the peer takes some; "working": anything else. That of a TLS connection,
        or in a child process, is always "working".
        """
        return self._view.state

    def close(self) -> None:
        """Shut the connection down; its handler finds an end of the stream, or an error.

        A child process that serves it gets SIGTERM. For any thread. Does nothing to a connection
        that has ended, nor to one that its handler has detached, unless that was by the
        ``wrap_socket()`` of ssl.
        """
        self._view.close()

    def __repr__(self) -> str:
        return (
            f"<connection of {self.client_address!r}, {self.state}, {self.seconds:.3f} s, "
            f"{self.bytes_in} bytes in, {self.bytes_out} out>"
        )


def stats_of(server: Any, control: Control) -> Stats:
    """The snapshot of a server."""
    ledger = control.ledger
    ledger.after_fork()
    keep_children(server, control)
    received, sent = ledger.bytes()
    counts = ledger.latencies()
    bounds = [1024e-9 * 2**index for index in range(len(counts) - 1)] + [float("inf")]
    pool: Pool | None = control.pool
    busy, idle, peak = ledger.threads, 0, ledger.threads_peak
    if pool is not None:
        busy, idle, peak = busy + pool.running, pool.idle, max(peak, pool.peak)
    return Stats(
        accepted=ledger.accepted,
        active=ledger.active,
        peak=ledger.peak,
        finished=ledger.finished,
        failed=ledger.failed,
        refused=dict(ledger.refused),
        timed_out=dict(ledger.timed_out),
        accept_errors=dict(control.accept_errors),
        start_failures=control.start_failures,
        bytes_in=received,
        bytes_out=sent,
        datagrams_in=ledger.datagrams,
        datagrams_out=_of_socket(server, sent_by) + ledger.datagrams_sent_by_children,
        datagrams_truncated=control.truncated,
        datagrams_dropped=_of_socket(server, _dropped),
        threads_busy=busy,
        threads_idle=idle,
        threads_peak=peak,
        children=len(ledger.children),
        longest_running=ledger.longest(),
        latencies=tuple(zip(bounds, counts, strict=True)),
        latency_sum=ledger.seconds_served,
    )


def live_records(server: Any, control: Control) -> list[Record]:
    """Of what is being served, the latest first."""
    keep_children(server, control)
    return control.ledger.records()


def connections_of(server: Any, control: Control) -> list[LiveConnection]:
    """As live_records(), for programs."""
    return [LiveConnection(view) for view in views(live_records(server, control))]


def keep_children(server: Any, control: Control) -> None:
    """A program that collects children in its own way has told nobody but active_children."""
    children = getattr(server, "active_children", None)
    if control.ledger.children and isinstance(children, set):
        control.ledger.keep_children(children)


def _of_socket(server: Any, count: Callable[[Any], int]) -> int:
    try:
        return count(server)
    except Exception:  # a program has something else for a socket, or has closed it
        return 0


def _dropped(server: Any) -> int:
    sock = server.socket
    return counts_of(sock, 0).dropped if sock.type == socket.SOCK_DGRAM else 0
