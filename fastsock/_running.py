"""``run()``: serve until a signal says that it is enough, then drain.

Threads: the loop runs in the main thread, as does the function of ``signal.signal()``, which may
interrupt anything there: it takes no lock. A drain has to wait for the loop, so the first signal
starts a thread for it.
"""

from __future__ import annotations

import _thread
import math
import os
import signal
import threading
from _socket import socket as _socket_type
from types import FrameType

from fastsock._servers import BaseServer, _loops, serve_forever
from fastsock._serving import _control_of, _loop_runs
from fastsock._types import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsock._drain import DrainReport
else:
    DrainReport = Any  # of a module that is imported late; named for typing.get_type_hints()

SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: seconds that a second signal may have to wait, at the most
LOOK = 0.05


def run(
    *servers: BaseServer, drain_timeout: float | None = 10.0, poll_interval: float = 0.5
) -> DrainReport | None:
    """Serve until a SIGINT or SIGTERM, then drain; in the main thread.

    The first signal stops accepting, as ``BaseServer.drain()`` does. A second one is the deadline:
    what still runs is cut off. A handler that does not end by that, in the main thread (of a server
    without mix-in, or a multiplexing one), is left by an exception that is no Exception; every
    further signal raises it again. What was set by ``signal.signal()`` before is set again at the
    end. A signal that is ignored stays so.

    Child processes of a ForkingMixIn server do not heed SIGINT, which a terminal sends to them too,
    and SIGTERM means to them what it meant before.

    Args:
        servers: at least one. Of a single one its own ``serve_forever()`` is called.
        drain_timeout: seconds that requests have to finish; None: without end.
        poll_interval: as in ``serve_forever()``.

    Returns:
        What became of the requests, of all servers together; None if it was no signal that ended
        ``serve_forever()``.

    Raises:
        ValueError: not the main thread, no server, or one that is closed; drain_timeout is NaN.
        TypeError: something is no server, or drain_timeout no number.
    """
    if not servers:
        raise ValueError("no server to run")
    for server in servers:
        if not isinstance(server, BaseServer):
            raise TypeError(f"not a fastsock server: {server!r}")
    if drain_timeout is not None:
        drain_timeout = drain_timeout + 0.0
        if math.isnan(drain_timeout):
            raise ValueError("drain_timeout is not a number")
    return _Run(list(dict.fromkeys(servers)), drain_timeout).run(poll_interval)


class _Over(BaseException):
    """Leaves a handler that runs in the main thread when its time is over."""


class _Run:
    def __init__(self, servers: list[BaseServer], timeout: float | None) -> None:
        self._servers = servers
        self._timeout = timeout
        self._before: dict[int, Any] = {}  # what signals meant
        self._signals = 0  # that have come
        self._serving = False
        self._forced = False
        self._process = os.getpid()
        self._ending = _thread.allocate_lock()  # of _serving, against a signal that comes too late
        self._drained = _thread.allocate_lock()
        self._drained.acquire()
        self._drains = False
        self._reports: list[DrainReport] = []
        self._error: BaseException | None = None

    def run(self, poll_interval: float) -> DrainReport | None:
        try:
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN and before is not None:
                    signal.signal(number, self._on_signal)  # ValueError: not the main thread
                    self._before[number] = before
            _runs.append(self)
            # When the time has come there may be no descriptor to import it with.
            from fastsock import _drain  # noqa: F401

            self._serve(poll_interval)
            return self._report()
        finally:
            if self in _runs:
                _runs.remove(self)
            self._restore()

    def _serve(self, poll_interval: float) -> None:
        try:
            self._serving = True
            if self._signals:  # already
                raise _Over
            if len(self._servers) == 1:
                self._servers[0].serve_forever(poll_interval)
            else:
                serve_forever(*self._servers, poll_interval=poll_interval)
        except _Over:
            pass
        except ValueError:
            # The signal came before the loop began, and the drain has closed what it was to serve.
            if not (self._drains and any(_is_closed(server) for server in self._servers)):
                raise
        finally:
            self._serving = False
            with self._ending:  # from here on nothing is forced
                pass
        if self._drains:
            # A signal that comes right before such a wait does not end it: its function runs after.
            while not self._drained.acquire(timeout=LOOK):
                pass
        elif self._signals:  # before the loop, or no thread could be started
            self._drain()

    def _report(self) -> DrainReport | None:
        if self._error is not None:
            raise self._error
        if not self._reports:
            return None
        from fastsock._drain import DrainReport

        return DrainReport(
            sum(report.finished for report in self._reports),
            sum(report.idle_closed for report in self._reports),
            sum(report.cut_off for report in self._reports),
        )

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, between any two of its steps."""
        self._signals += not self._forced
        if self._signals > 2 or self._forced:
            self._forced = False
            if self._serving:
                raise _Over
        elif self._signals == 1 and self._serving:
            try:
                # Not threading.Thread, whose lock the one may hold that was interrupted.
                _thread.start_new_thread(self._drain, ())
                self._drains = True
            except RuntimeError:
                for server in self._servers:
                    server._BaseServer__shutdown_request = True  # type: ignore[attr-defined]

    def _drain(self) -> None:
        try:
            from fastsock import _drain

            servers = [(server, _control_of(server)) for server in self._servers]
            self._reports = _drain.drain(
                servers, self._timeout, _loops(), lambda: self._signals > 1
            )
            self._force()
        except BaseException as error:
            self._error = error
            for server in self._servers:
                server._BaseServer__shutdown_request = True  # type: ignore[attr-defined]
        finally:
            self._drained.release()

    def _force(self) -> None:
        """End a handler in the main thread that goes on, and with it the loop."""
        with self._ending:
            if self._serving and self._before and any(map(_loop_runs, self._servers)):
                self._forced = True
                # To that thread, where it ends what waits in the kernel, too.
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, next(iter(self._before)))

    def in_child(self) -> None:
        """After a fork: the signals are the parent's affair."""
        for number, before in self._before.items():
            signal.signal(number, _ignore if number == signal.SIGINT else before)
        self._before = {}


def _is_closed(server: Any) -> bool:
    sock = getattr(server, "socket", None)
    return isinstance(sock, _socket_type) and sock.fileno() < 0


def _ignore(number: int, frame: FrameType | None) -> None:
    # A function, and not SIG_IGN, which programs that are executed would inherit.
    pass


#: those that are under way, one within a handler of the other
_runs: list[_Run] = []


def _after_fork_in_child() -> None:
    for one in reversed(_runs):
        one.in_child()
    _runs.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
