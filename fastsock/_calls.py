"""The calls of a socket object, made so that they wait by a function instead of blocking.

The function is (descriptor, read, write, seconds, copy) -> ready; a hub's, see
``_visitors.waiting()``.
The socket's timeout is that of a whole call. Nothing here is used where there are no tasks.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator

from fastsock import _methods, _visitors
from fastsock._channel import Channel
from fastsock._types import Any

Wait = Callable[..., bool]

#: with which recvmsg(2) never waits
MSG_ERRQUEUE = 0x2000
#: bytes of a file that are sent at once, between which others may run
PIECE = 1 << 18


def _channel_of(sock: Any) -> Channel | None:
    channel = getattr(sock, "_channel", None)
    return channel if isinstance(channel, Channel) else None


class _Attempts:
    """One call, which is tried until it need not wait."""

    def __init__(self, sock: Any, wait: Wait) -> None:
        self._sock = sock
        self._wait = wait
        self.limit: float | None = sock.gettimeout()
        self._deadline = None if self.limit is None else time.monotonic() + self.limit

    def left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0)

    def wait(self, writing: bool) -> None:
        """Wait until it is worth trying.

        Raises:
            TimeoutError: the time is over.
        """
        channel = _channel_of(self._sock)
        if channel is not None and _methods.suspends(self._sock):
            _methods.await_ready(self._sock, writing, self.left())
            return
        whom = self._sock if channel is None else channel
        if not _visitors.wait_by(self._wait, whom, self.descriptor(), writing, self.left()):
            raise TimeoutError("timed out")

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Between what other tasks send, and not in the middle of it."""
        if self.limit == 0 or _channel_of(self._sock) is None:
            yield
            return
        _methods.begin_sending(self._sock, self.left())
        try:
            yield
        finally:
            _methods.end_sending(self._sock)

    def pause(self) -> None:
        """Wait for a moment, where the kernel has nothing to wait for."""
        if self.left() == 0:
            raise TimeoutError("timed out")
        reader, writer = os.pipe()
        try:
            self._wait(reader, True, False, 0.005)
        finally:
            os.close(reader)
            os.close(writer)

    def descriptor(self) -> int:
        descriptor: int = self._sock.fileno()
        if descriptor < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return descriptor

    @contextlib.contextmanager
    def nonblocking(self) -> Iterator[Any]:
        """A socket object without timeout of its own on the same descriptor, which doesn't block.

        The descriptor's mode is what it was afterwards: other processes may share it.
        """
        descriptor = self.descriptor()
        blocks = os.get_blocking(descriptor)
        sock = self._sock
        guest = _socket.socket(sock.family, sock.type, sock.proto, descriptor)
        try:
            guest.settimeout(0)
            yield guest
        finally:
            guest.detach()
            if blocks and self._sock.fileno() == descriptor:
                os.set_blocking(descriptor, True)

    def once(self, name: str, *arguments: Any) -> Any:
        """Try, with MSG_DONTWAIT among the arguments.

        A socket object with a timeout would begin with a poll(2) of its own.
        """
        if self.limit is None:
            return getattr(_socket.socket, name)(self._sock, *arguments)
        with self.nonblocking() as guest:
            return getattr(guest, name)(*arguments)

    def receive(self, name: str, *arguments: Any, flags: int) -> Any:
        if self.limit != 0:
            flags |= socket.MSG_DONTWAIT
        while True:
            try:
                return self.once(name, *arguments, flags)
            except BlockingIOError:
                if self.limit == 0 or (self.limit is None and flags & MSG_ERRQUEUE):
                    raise
            self.wait(False)

    def send(self, data: Any, flags: int, *address: Any, all_of_it: bool) -> int:
        """Send bytes; without a timeout until all are taken, as send(2)."""
        with self.sending():
            return self.send_rest(data, flags, *address, all_of_it=all_of_it)

    def send_rest(
        self, data: Any, flags: int, *address: Any, all_of_it: bool, sent: int = 0
    ) -> int:
        name = "sendto" if address else "send"
        if self.limit != 0:
            flags |= socket.MSG_DONTWAIT
        with memoryview(data) as view, view.cast("B") as left:
            while True:
                try:
                    taken = self.once(name, left[sent:], flags, *address)
                except BlockingIOError:
                    if self.limit == 0:
                        raise
                except OSError:
                    if sent and not all_of_it:
                        return sent  # the next call meets it
                    raise
                else:
                    sent += taken
                    if sent >= len(left) or not (all_of_it or self.limit is None):
                        return sent
                    _visitors.take_turn(taken)
                    continue
                try:
                    self.wait(True)
                except OSError:
                    if sent and not all_of_it:
                        return sent
                    raise


def recv(sock: Any, wait: Wait, bufsize: int, flags: int = 0, /) -> bytes:
    attempts = _Attempts(sock, wait)
    if not _waits_for_all(attempts, flags):
        received: bytes = attempts.receive("recv", bufsize, flags=flags)
        return received
    buffer = bytearray(bufsize)
    return bytes(buffer[: _fill(attempts, buffer, flags)])


def recv_into(sock: Any, wait: Wait, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
    attempts = _Attempts(sock, wait)
    if not _waits_for_all(attempts, flags):
        count: int = attempts.receive("recv_into", buffer, nbytes, flags=flags)
        return count
    with memoryview(buffer) as view, view.cast("B") as into:
        return _fill(attempts, into[: nbytes or len(into)], flags)


def _waits_for_all(attempts: _Attempts, flags: int) -> bool:
    """Whether recv(2) would; not on a descriptor that doesn't block."""
    return bool(flags & socket.MSG_WAITALL) and attempts.limit is None


def _fill(attempts: _Attempts, buffer: Any, flags: int) -> int:
    if flags & socket.MSG_PEEK:
        count: int = attempts.receive("recv_into", buffer, 0, flags=flags)
        return count
    received = 0
    with memoryview(buffer) as into:
        while received < len(into):
            try:
                count = attempts.receive("recv_into", into[received:], 0, flags=flags)
            except OSError:
                if received == 0:
                    raise
                break
            if count == 0:
                break
            received += count
    return received


def recvfrom(sock: Any, wait: Wait, bufsize: int, flags: int = 0, /) -> Any:
    return _Attempts(sock, wait).receive("recvfrom", bufsize, flags=flags)


def recvfrom_into(sock: Any, wait: Wait, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
    return _Attempts(sock, wait).receive("recvfrom_into", buffer, nbytes, flags=flags)


def recvmsg(sock: Any, wait: Wait, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
    return _Attempts(sock, wait).receive("recvmsg", bufsize, ancbufsize, flags=flags)


def recvmsg_into(
    sock: Any, wait: Wait, buffers: Any, ancbufsize: int = 0, flags: int = 0, /
) -> Any:
    return _Attempts(sock, wait).receive("recvmsg_into", buffers, ancbufsize, flags=flags)


def send(sock: Any, wait: Wait, data: Any, flags: int = 0, /) -> int:
    return _Attempts(sock, wait).send(data, flags, all_of_it=False)


def sendall(sock: Any, wait: Wait, data: Any, flags: int = 0, /) -> None:
    _Attempts(sock, wait).send(data, flags, all_of_it=True)


def sendto(sock: Any, wait: Wait, data: Any, *rest: Any) -> int:
    if len(rest) not in (1, 2):  # it says what is wrong
        return _socket.socket.sendto(sock, data, *rest)
    flags = rest[0] if len(rest) == 2 else 0
    return _Attempts(sock, wait).send(data, flags, rest[-1], all_of_it=False)


def sendmsg(
    sock: Any,
    wait: Wait,
    buffers: Any,
    ancdata: Any = (),
    flags: int = 0,
    address: Any = None,
    /,
) -> int:
    """Ancillary data goes once, with the first bytes; what those leave follows without."""
    attempts = _Attempts(sock, wait)
    with attempts.sending():
        return _sendmsg(attempts, list(buffers), list(ancdata), flags, address)


def _sendmsg(
    attempts: _Attempts, pieces: list[Any], ancillary: list[Any], flags: int, address: Any
) -> int:
    dont_wait = flags if attempts.limit == 0 else flags | socket.MSG_DONTWAIT
    while True:
        try:
            sent: int = attempts.once("sendmsg", pieces, ancillary, dont_wait, address)
            break
        except BlockingIOError:
            if attempts.limit == 0:
                raise
        attempts.wait(True)
    if attempts.limit is not None or sent >= sum(memoryview(each).nbytes for each in pieces):
        return sent
    data = b"".join(pieces)
    to = () if address is None else (address,)
    return attempts.send_rest(data, flags, *to, all_of_it=False, sent=sent)


def accept(sock: Any, wait: Wait) -> tuple[int, Any]:
    """``_accept()`` of a socket object: a descriptor and an address."""
    attempts = _Attempts(sock, wait)
    while True:
        try:
            with attempts.nonblocking() as guest:
                accepted: tuple[int, Any] = guest._accept()
                return accepted
        except BlockingIOError:
            if attempts.limit == 0:
                raise
        attempts.wait(False)


def connect_ex(sock: Any, wait: Wait, address: Any, /) -> int:
    """As of a socket object: an errno value; EAGAIN: the time is over."""
    attempts = _Attempts(sock, wait)
    if attempts.limit == 0:
        return _socket.socket.connect_ex(sock, address)
    try:
        while True:
            with attempts.nonblocking() as guest:
                error: int = guest.connect_ex(address)
            if error == errno.EINPROGRESS:
                attempts.wait(True)
                return _socket.socket.getsockopt(sock, socket.SOL_SOCKET, socket.SO_ERROR)
            if error != errno.EAGAIN:
                return error
            attempts.pause()  # a Unix listener's backlog is full: there is no event for that
    except TimeoutError:
        return errno.EAGAIN


def connect(sock: Any, wait: Wait, address: Any, /) -> None:
    if sock.gettimeout() == 0:
        _socket.socket.connect(sock, address)
    elif error := connect_ex(sock, wait, address):
        if error == errno.EAGAIN:
            raise TimeoutError("timed out")
        raise OSError(error, os.strerror(error))


def sendfile(sock: Any, wait: Wait, file: Any, offset: int = 0, count: int | None = None) -> int:
    """``socket.sendfile()``, whose timeout is that of each of its waits."""
    sock._check_sendfile_params(file, offset, count)
    if sock.gettimeout() == 0:
        raise ValueError("non-blocking sockets are not supported")
    try:
        source = file.fileno()
        size = os.fstat(source).st_size
    except (AttributeError, OSError):  # no regular file
        by_send: int = sock._sendfile_use_send(file, offset, count)
        return by_send
    total = 0
    try:
        with _Attempts(sock, wait).sending():
            while size:
                wanted = PIECE if count is None else min(count - total, PIECE)
                if wanted <= 0:
                    break
                _visitors.take_turn(wanted)
                attempts = _Attempts(sock, wait)
                try:
                    with attempts.nonblocking() as guest:
                        taken = os.sendfile(guest.fileno(), source, offset, wanted)
                except BlockingIOError:
                    attempts.wait(True)
                    continue
                if taken == 0:
                    break
                offset += taken
                total += taken
        return total
    finally:
        if total and hasattr(file, "seek"):
            file.seek(offset)
