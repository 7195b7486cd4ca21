"""Real signals to a process that serves in its main thread. fastsock only."""

from __future__ import annotations

import signal
import socket
import subprocess

import pytest
from programs import Ended, Programs, end, wait_until_asleep
from support import TIMEOUT

COMMON = """
import _thread, os, signal, socket, sys, threading, time
import fastsock

class Server(fastsock.TCPServer):
    actions = timeouts = 0
    running = threading.Event()
    def service_actions(self):
        self.actions += 1
        self.running.set()
    def handle_timeout(self):
        self.timeouts += 1

class Upper(fastsock.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

server = Server(('127.0.0.1', 0), Upper)
print(server.server_address[1], flush=True)
"""


class Child:
    """A program that serves, as its clients and whoever sends it signals see it."""

    def __init__(self, programs: Programs, body: str, *args: object) -> None:
        programs.write("program.py", COMMON + body)
        self.process: subprocess.Popen[str] = programs.start("program.py", *map(str, args))
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, end(self.process)
        self.address = "127.0.0.1", int(line)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, TIMEOUT)

    def ask(self) -> bytes:
        with self.connect() as sock:
            sock.sendall(b"hello\n")
            answer = sock.recv(100)
            assert sock.recv(1) == b""
            return answer

    def signal(self, number: int) -> None:
        """Send a signal while the main thread waits."""
        wait_until_asleep(self.process)
        self.process.send_signal(number)

    def ends(self, out: str = "done\n") -> None:
        assert end(self.process) == Ended(0, out, "")


long_intervals = pytest.mark.parametrize("poll_interval", [None, 60])


@long_intervals
def test_interrupt_ends_serve_forever_at_once(
    programs: Programs, poll_interval: float | None
) -> None:
    """Whatever the poll_interval, before a request and after; the server goes on to be usable."""
    child = Child(
        programs,
        """
for _ in range(3):
    try:
        server.serve_forever(eval(sys.argv[1]))
    except KeyboardInterrupt:
        print('interrupted', flush=True)
assert not server._BaseServer__shutdown_request
server.shutdown()
server.server_close()
""",
        poll_interval,
    )
    child.signal(signal.SIGINT)
    assert child.process.stdout is not None
    assert child.process.stdout.readline() == "interrupted\n"
    assert child.ask() == b"HELLO\n"
    child.signal(signal.SIGINT)
    assert child.process.stdout.readline() == "interrupted\n"
    child.signal(signal.SIGINT)
    child.ends("interrupted\n")


def test_interrupt_ends_several_servers(programs: Programs) -> None:
    child = Child(
        programs,
        """
other = Server(('127.0.0.1', 0), Upper)
try:
    fastsock.serve_forever(server, other, poll_interval=None)
except KeyboardInterrupt:
    print('done')
server.shutdown()
other.shutdown()
""",
    )
    assert child.ask() == b"HELLO\n"
    child.signal(signal.SIGINT)
    child.ends()


def test_interrupt_in_a_handler(programs: Programs) -> None:
    """It leaves serve_forever(), and the request has been ended."""
    child = Child(
        programs,
        """
class Asking(Upper):
    def handle(self):
        self.wfile.write(b'?')
        super().handle()
server.RequestHandlerClass = Asking
try:
    server.serve_forever(None)
except KeyboardInterrupt:
    print('done')
""",
    )
    with child.connect() as silent:
        assert silent.recv(1) == b"?"
        child.signal(signal.SIGINT)
        assert silent.recv(1) == b""
    child.ends()


@pytest.mark.parametrize("call", ["serve_forever(None)", "handle_request()"])
def test_an_exception_of_a_signal_handler_leaves(programs: Programs, call: str) -> None:
    """As it is, whatever its type: it is not a hook's."""
    child = Child(
        programs,
        f"""
class Reload(ValueError):
    pass
def reload(*args):
    raise Reload
signal.signal(signal.SIGHUP, reload)
reloads = 0
while reloads < 2:
    try:
        server.{call}
    except Reload:
        reloads += 1
        print('reloads', flush=True)
""",
    )
    child.signal(signal.SIGHUP)
    assert child.process.stdout is not None
    assert child.process.stdout.readline() == "reloads\n"
    assert child.ask() == b"HELLO\n"
    child.signal(signal.SIGHUP)
    child.ends("reloads\n")


# --- handlers that stop the loop

STOPS = {
    "shutdown": "server.shutdown()",
    "twice": "server.shutdown(); server.shutdown()",
    "assigned": "server._BaseServer__shutdown_request = True",
}


@long_intervals
@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("where", ["main", "other"])
def test_signal_handler_stops_the_loop(
    programs: Programs, where: str, how: str, poll_interval: float | None
) -> None:
    child = Child(
        programs,
        f"""
def stop(*args):
    assert threading.current_thread() is threading.main_thread()
    {STOPS[how]}
signal.signal(signal.SIGTERM, stop)
interval = eval(sys.argv[1])
if sys.argv[2] == 'main':
    server.serve_forever(interval)
else:
    thread = threading.Thread(target=server.serve_forever, args=(interval,))
    thread.start()
    thread.join()
print('done')
""",
        poll_interval,
        where,
    )
    assert child.ask() == b"HELLO\n"
    child.signal(signal.SIGTERM)
    child.ends()


@pytest.mark.parametrize("where", ["main", "other"])
def test_two_signals_two_hundred_times(programs: Programs, where: str) -> None:
    """The second may come while the first one's shutdown() waits: no deadlock.

    (Nothing waits without end here: a signal that comes between Python's last look and the wait
    is seen after the wait.)
    """
    child = Child(
        programs,
        """
calls = 0
def stop(*args):
    global calls
    calls += 1
    server.shutdown()
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGUSR2, stop)
main = threading.main_thread().ident
for _ in range(200):
    def twice():
        signal.pthread_kill(main, signal.SIGUSR1)
        signal.pthread_kill(main, signal.SIGUSR2)
    sender = threading.Thread(target=twice)
    if sys.argv[1] == 'main':
        sender.start()
        server.serve_forever(0.5)
    else:
        serving = threading.Thread(target=server.serve_forever, args=(None,))
        serving.start()
        sender.start()
        while serving.is_alive():
            serving.join(0.5)
    sender.join()
    # What came after the end is kept for the next loop; begin anew.
    server._BaseServer__shutdown_request = False
assert calls == 400, calls
print('done')
""",
        where,
    )
    child.ends()


# --- handlers that don't


@long_intervals
def test_the_loop_goes_on_after_a_signal(programs: Programs, poll_interval: float | None) -> None:
    """Not a wake-up of the loop's own: service_actions() is not called for it."""
    child = Child(
        programs,
        """
seen = []
signal.signal(signal.SIGUSR1, lambda *args: seen.append(server.actions))
signal.signal(signal.SIGTERM, lambda *args: server.shutdown())
server.serve_forever(eval(sys.argv[1]))
print(seen, server.actions)
""",
        poll_interval,
    )
    for _ in range(3):
        child.signal(signal.SIGUSR1)
    assert child.ask() == b"HELLO\n"
    for _ in range(2):
        child.signal(signal.SIGUSR1)
    child.signal(signal.SIGTERM)
    child.ends("[0, 0, 0, 1, 1] 1\n")


def test_signals_do_not_move_the_poll_interval(programs: Programs) -> None:
    child = Child(
        programs,
        """
signals = 0
def count(*args):
    global signals
    signals += 1
signal.signal(signal.SIGALRM, count)
class Three(Server):
    def service_actions(self):
        super().service_actions()
        if self.actions == 3:
            self.shutdown()
with Three(('127.0.0.1', 0), Upper) as three:
    signal.setitimer(signal.ITIMER_REAL, 0.04, 0.04)
    begin = time.monotonic()
    three.serve_forever(0.2)
    elapsed = time.monotonic() - begin
    signal.setitimer(signal.ITIMER_REAL, 0)
assert 0.6 <= elapsed < 3, elapsed
assert signals >= 8, signals
print('done')
""",
    )
    child.ends()


def test_the_wake_up_descriptor_is_the_programs(programs: Programs) -> None:
    """Neither signal.set_wakeup_fd(), nor handlers, nor the signal mask change."""
    child = Child(
        programs,
        """
readable, writable = socket.socketpair()
readable.setblocking(False)
writable.setblocking(False)
signal.set_wakeup_fd(writable.fileno())
signal.signal(signal.SIGUSR1, lambda *args: None)
signal.signal(signal.SIGUSR2, lambda *args: server.shutdown())
def state():
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return found, handlers, signal.pthread_sigmask(signal.SIG_BLOCK, [])
before = state()
assert before[0] == writable.fileno()
server.serve_forever(None)
assert state() == before
assert readable.recv(100) == bytes([signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2])
server.timeout = 0
server.handle_request()
assert state() == before
print('done')
""",
    )
    child.signal(signal.SIGUSR1)
    child.signal(signal.SIGUSR1)
    child.signal(signal.SIGUSR2)
    child.ends()


# --- signals that wake nobody

UNHEARD = {
    "interrupt_main": "_thread.interrupt_main()",
    "raise_signal": "signal.raise_signal(signal.SIGINT)",
    "pthread_kill": "signal.pthread_kill(threading.get_ident(), signal.SIGINT)",
}


@pytest.mark.parametrize("how", UNHEARD)
def test_takes_effect_by_the_next_poll_interval(programs: Programs, how: str) -> None:
    """Delivered to another thread, such a signal does not end the main thread's poll."""
    child = Child(
        programs,
        f"""
def interrupt():
    server.running.wait()
    {UNHEARD[how]}
thread = threading.Thread(target=interrupt)
thread.start()
try:
    server.serve_forever(0.1)
except KeyboardInterrupt:
    print('done')
thread.join()
""",
    )
    child.ends()


def test_a_handler_called_by_the_next_poll_interval(programs: Programs) -> None:
    child = Child(
        programs,
        """
signal.signal(signal.SIGUSR1, lambda *args: server.shutdown())
def send():
    server.running.wait()
    signal.raise_signal(signal.SIGUSR1)
thread = threading.Thread(target=send)
thread.start()
server.serve_forever(0.1)
thread.join()
print('done')
""",
    )
    child.ends()


# --- handle_request()


def test_interrupt_ends_handle_request_at_once(programs: Programs) -> None:
    child = Child(
        programs,
        """
for server.timeout in (None, 60):
    try:
        server.handle_request()
    except KeyboardInterrupt:
        print('interrupted', flush=True)
assert server.timeouts == 0
""",
    )
    child.signal(signal.SIGINT)
    assert child.process.stdout is not None
    assert child.process.stdout.readline() == "interrupted\n"
    child.signal(signal.SIGINT)
    child.ends("interrupted\n")


def test_handle_request_waits_on_after_a_signal(programs: Programs) -> None:
    child = Child(
        programs,
        """
seen = []
signal.signal(signal.SIGUSR1, lambda *args: seen.append(server.timeouts))
server.handle_request()
print(seen, server.timeouts)
""",
    )
    child.signal(signal.SIGUSR1)
    child.signal(signal.SIGUSR1)
    wait_until_asleep(child.process)
    assert child.ask() == b"HELLO\n"
    child.ends("[0, 0] 0\n")


def test_handle_request_keeps_its_timeout_after_signals(programs: Programs) -> None:
    """Neither signals that come often nor one that comes late shorten or prolong it."""
    child = Child(
        programs,
        """
signals = 0
def count(*args):
    global signals
    signals += 1
signal.signal(signal.SIGALRM, count)
def take(*timer):
    signal.setitimer(signal.ITIMER_REAL, *timer)
    begin = time.monotonic()
    server.handle_request()
    elapsed = time.monotonic() - begin
    signal.setitimer(signal.ITIMER_REAL, 0)
    return elapsed
server.timeout = 0.4
elapsed = take(0.03, 0.03)
assert 0.4 <= elapsed < 3, elapsed
assert server.timeouts == 1
assert signals >= 6, signals
signals = 0
server.timeout = 1
elapsed = take(0.9)
assert 1 <= elapsed < 1.7, elapsed
assert (server.timeouts, signals) == (2, 1)
print('done')
""",
    )
    child.ends()


def test_shutdown_by_a_signal_during_handle_request(programs: Programs) -> None:
    """No loop runs: shutdown() returns, handle_request() waits on, serve_forever() ends."""
    child = Child(
        programs,
        """
signal.signal(signal.SIGTERM, lambda *args: server.shutdown())
server.handle_request()
print('handled', flush=True)
server.serve_forever(None)
print('done')
""",
    )
    child.signal(signal.SIGTERM)
    wait_until_asleep(child.process)
    assert child.ask() == b"HELLO\n"
    child.ends("handled\ndone\n")
