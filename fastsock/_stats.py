"""What a server says about itself: ``stats()`` and ``connections``."""

from __future__ import annotations

from dataclasses import dataclass

from fastsock._control import Control
from fastsock._ledger import Record
from fastsock._types import Any


@dataclass(frozen=True)
class Stats:
    """A snapshot of what a server counts; see ``BaseServer.stats()``.

    Attributes:
        accepted: connections that were taken, and requests of other kinds; datagrams are not.
        active: those that are being served.
        peak: the most that were at a time.
        finished: those that have ended, and datagrams that were served.
        failed: requests whose handler has raised an exception.
        accept_errors: how often accept(2) or recvfrom(2) failed, by errno.
        start_failures: how often a thread or a process for a request could not be started.
        bytes_in, bytes_out: received and written by handlers on connections.
        datagrams_in: how many were taken.
        datagrams_truncated: how many of those were longer than max_packet_size.
        longest_running: seconds for which the oldest of the active has been served; 0.0: none is.
        latencies: how many requests have lasted for less than so many seconds, as (seconds, count)
            in ascending order; the last bound is infinite.
    """

    accepted: int
    active: int
    peak: int
    finished: int
    failed: int
    accept_errors: dict[int, int]
    start_failures: int
    bytes_in: int
    bytes_out: int
    datagrams_in: int
    datagrams_truncated: int
    longest_running: float
    latencies: tuple[tuple[float, int], ...]


class LiveConnection:
    """A connection that a server serves, or has served; see ``BaseServer.connections``."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    @property
    def client_address(self) -> Any:
        """The peer's address as get_request() returned it."""
        return self._record.client_address

    @property
    def is_live(self) -> bool:
        """Whether it has not ended yet."""
        return self._record.is_live

    @property
    def seconds(self) -> float:
        """For how long it has been served."""
        return self._record.seconds

    @property
    def bytes_in(self) -> int:
        """How many bytes its handler has received."""
        return self._record.bytes_received

    @property
    def bytes_out(self) -> int:
        """How many bytes its handler has written."""
        return self._record.bytes_sent

    @property
    def state(self) -> str:
        """What its handler does.

        "idle": it waits for a message, of which nothing has come; "reading": for the rest of one;
        "writing": until the peer takes some; "working": anything else.
        """
        return self._record.state

    def close(self) -> None:
        """Shut the connection down; its handler finds an end of the stream, or an error.

        For any thread. Does nothing to a connection that has ended.
        """
        self._record.close()

    def __repr__(self) -> str:
        return (
            f"<connection of {self.client_address!r}, {self.state}, {self.seconds:.3f} s, "
            f"{self.bytes_in} bytes in, {self.bytes_out} out>"
        )


def stats_of(server: Any, control: Control) -> Stats:
    """The snapshot of a server."""
    ledger = control.ledger
    received, sent = ledger.bytes()
    counts = ledger.latencies()
    bounds = [1024e-9 * 2**index for index in range(len(counts) - 1)] + [float("inf")]
    return Stats(
        accepted=ledger.accepted,
        active=ledger.active,
        peak=ledger.peak,
        finished=ledger.finished,
        failed=ledger.failed,
        accept_errors=dict(control.accept_errors),
        start_failures=control.start_failures,
        bytes_in=received,
        bytes_out=sent,
        datagrams_in=ledger.datagrams,
        datagrams_truncated=control.truncated,
        longest_running=ledger.longest(),
        latencies=tuple(zip(bounds, counts, strict=True)),
    )
