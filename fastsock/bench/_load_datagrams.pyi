from typing import final

from fastsock.bench._load_base import Address, Load

@final
class DatagramLoad(Load):
    """The load of a datagram server that answers each datagram with itself."""

    def __init__(
        self,
        address: Address,
        connections: int,
        size: int,
        *,
        window: int = 1,
        timeout: float | None = None,
    ) -> None:
        """Say what the load is. Nothing is opened.

        Args:
            address: of the server.
            connections: sockets, each connected to the server.
            size: bytes of a datagram, up to 8192. With fewer than 8, answers to another socket,
                second ones and disordered ones can't be told from right ones.
            window: datagrams that are under way on each socket, up to 4096. Unix sockets' queues
                are short: net.unix.max_dgram_qlen.
            timeout: seconds until a datagram is given up for lost; None: ``DATAGRAM_TIMEOUT``.

        Raises:
            ValueError: something is out of bounds, or the address isn't one of this machine.
        """
