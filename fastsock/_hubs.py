"""The hub of each thread, the greenlets on it, and the watch over those that hold it.

The only importer of greenlet, which comes with the extra ``fastsock[multiplex]``.

Threads: a hub is looked up by its own thread. What a server knows of its tasks (``Tasks``) may be
used from any.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable

from fastsock import _visitors
from fastsock._hub import Hub
from fastsock._log import raised_by_signal_handler as raised_by_signal_handler  # for those above
from fastsock._log import report as log
from fastsock._sync import Event
from fastsock._tasks import Task
from fastsock._types import Any

#: how often the watch looks, and how long a task may hold the thread before it says so; seconds
LOOK_EVERY = 0.2
HELD_TOO_LONG = 0.5

_here = threading.local()
_all: weakref.WeakSet[Hub] = weakref.WeakSet()
_crews: weakref.WeakSet[Tasks] = weakref.WeakSet()
_at_close: weakref.WeakKeyDictionary[Hub, list[Callable[[], object]]] = weakref.WeakKeyDictionary()


class _Life:
    """Of a thread, in whose storage it is the only one: it goes when the thread ends."""


_lives: weakref.WeakKeyDictionary[Hub, weakref.ref[_Life]] = weakref.WeakKeyDictionary()


def _greenlet() -> Any:
    """The module.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import greenlet
    except ImportError as error:
        raise ImportError(
            "multiplexing needs the package greenlet: pip install 'fastsock[multiplex]'",
            name="greenlet",
        ) from error
    return greenlet


def exit_class() -> type[BaseException]:
    """What is raised where a task waits that is to end."""
    found: type[BaseException] = _greenlet().GreenletExit
    return found


def check() -> None:
    """Raise ImportError, naming the extra, if multiplexing can't be had."""
    _greenlet()


def here() -> Hub | None:
    """The hub that the caller is a task of, which can suspend it; None: it is none's."""
    hub: Hub | None = getattr(_here, "hub", None)
    return hub if hub is not None and hub.runs_here() else None


def thread_has_one() -> bool:
    """Whether there may be tasks in this thread."""
    return getattr(_here, "hub", None) is not None


def loop_runs_here() -> bool:
    """Whether a loop in this thread runs tasks, so that one more may be left to it."""
    hub: Hub | None = getattr(_here, "hub", None)
    return hub is not None and hub.active and hub.is_mine()


def waiting_for_descriptors() -> Callable[..., bool] | None:
    """How the caller waits without keeping tasks waiting, see ``_visitors.waiting()``.

    None: it is no task, nor the greenlet of a loop that serves; it may simply block.
    """
    hub: Hub | None = getattr(_here, "hub", None)
    if hub is None:
        return None
    if hub.runs_here():
        return hub.wait_for_descriptor
    if hub.active and is_main(hub):
        return hub.wait_in_main
    return None


def of_caller() -> Hub | None:
    """The hub by which the caller waits: as a task, or as the greenlet of a loop that has some.

    None: it may simply block.
    """
    hub: Hub | None = getattr(_here, "hub", None)
    if hub is None or hub.runs_here():
        return hub
    return hub if (hub.active or hub.alive) and is_main(hub) else None


def is_of_caller(hub: Hub) -> bool:
    """Whether it is this thread's, whose number may have been that of one which has ended."""
    return getattr(_here, "hub", None) is hub


def forget_descriptor(descriptor: int) -> None:
    """Wake those who wait for a descriptor that is about to be closed, in any thread."""
    for hub in list(_all):
        hub.forget_descriptor(descriptor)


def _take_turn(count: int) -> None:
    hub = here()
    if hub is not None:
        hub.take_turn(count)


_visitors.ask(waiting_for_descriptors, forget_descriptor, _take_turn)


def of_thread() -> Hub:
    """The hub of this thread, made if there is none yet, with the running greenlet as its main.

    Raises:
        ImportError: greenlet is missing.
    """
    hub: Hub | None = getattr(_here, "hub", None)
    if hub is None or hub.closed:
        greenlet = _greenlet()
        hub = _here.hub = Hub(
            greenlet.greenlet, greenlet.getcurrent(), greenlet.GreenletExit, _held, _refuses
        )
        _all.add(hub)
        if not hasattr(_here, "life"):
            _here.life = _Life()
        _lives[hub] = weakref.ref(_here.life)
    return hub


def is_orphaned(hub: Hub) -> bool:
    """Whether its thread has ended, so that nothing can ever run on it."""
    life = _lives.get(hub)
    return life is not None and life() is None


def release(hub: Hub) -> None:
    """Close a hub that nothing runs on; its thread makes another when it needs one."""
    if not hub.alive and not hub.active and hub.is_mine():
        hub.close()
        if getattr(_here, "hub", None) is hub:
            _here.hub = None
        _closed(hub)


def _closed(hub: Hub) -> None:
    for call in _at_close.pop(hub, ()):
        call()


def at_close(hub: Hub, call: Callable[[], object]) -> None:
    """Have call() called when a hub has been closed; in its thread, unless that has ended."""
    _at_close.setdefault(hub, []).append(call)


def is_main(hub: Hub) -> bool:
    """Whether the caller is the greenlet that the tasks of a hub are started from."""
    main: bool = hub.is_mine() and hub.main.greenlet is _greenlet().getcurrent()
    return main


class Tasks:
    """Of one server: those that run, and who waits for their end."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.running: set[Task] = set()
        _crews.add(self)
        self._waiting: list[Callable[[], object]] = []

    def start(self, run: Callable[[], object], about: Any) -> Task:
        """Have run() called by a task of its own, as soon as main waits."""
        hub = self.hub
        task = hub.new_task(about)
        task.call = run
        task.tasks = self
        self.running.add(task)
        hub.start(task)
        return task

    def run_one(self) -> None:
        """What a task's greenlet runs."""
        hub = self.hub
        task = hub.current
        try:
            task.take_call()()
        except KeyboardInterrupt:
            raise  # meant for the main thread, as which the task has run
        except BaseException as error:
            if raised_by_signal_handler(error):
                raise
            report()  # of SystemExit, too, as of a thread's: the default hook says nothing then
        finally:
            if hub.thread == 0:  # it has forked, and this is the child: the thread ends with it
                _end_child()
            try:
                hub.ended(task)
            finally:
                self.running.discard(task)
                if self._waiting:
                    self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def kill(self) -> None:
        """Unwind all of them but the caller: GreenletExit is raised where each of them waits."""
        caller = self.hub.current if self.hub.runs_here() else None
        for task in list(self.running):
            if task is not caller:
                self.hub.kill(task)

    def join(self) -> None:
        """Wait until all have ended but the caller, where there is a thread that lets them run."""
        hub = self.hub
        if not hub.is_mine():
            while self.running and hub.active:
                ended = threading.Lock()
                ended.acquire()
                self._waiting.append(ended.release)
                if self.running and hub.active:
                    ended.acquire()
        elif hub.runs_here():
            caller = hub.current
            while len(self.running) > (caller in self.running):
                ended_one = Event()  # and no park(), which may be sending something when it comes
                self._waiting.append(ended_one.set)
                ended_one.wait()
        elif is_main(hub):
            hub.run(lambda: self.running)
            release(hub)

    def bury(self) -> None:
        """Their thread has ended, none of them can be unwound: give up what they are about."""
        running, self.running = self.running, set()
        for task in running:
            try:
                task.about.left_behind()
            except Exception:
                report()
        self._tell()
        if not any(tasks.running for tasks in list(_crews) if tasks.hub is self.hub):
            self.hub.close()
            _closed(self.hub)

    def given_up(self) -> None:
        """The hub's thread does not let them run any more: nobody is to wait for them."""
        self._tell()


def report() -> None:
    """An exception that leaves a task is told of as one that leaves a thread."""
    found = sys.exc_info()
    if isinstance(found[1], exit_class()):
        return
    try:
        threading.excepthook(threading.ExceptHookArgs((*found, threading.current_thread())))
    except Exception:
        sys.excepthook(*sys.exc_info())


def _end_child() -> None:
    """As a process ends whose last thread ends."""
    import traceback

    error = sys.exc_info()[1]
    if error is not None:
        traceback.print_exception(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0 if error is None else 1)


# --- reports


def describe(about: Any) -> str:
    """What a report calls a task."""
    if about is None:
        return "a hook of the serve loop"
    try:
        return str(about)
    except Exception as error:  # a peer's address that cannot be shown
        return f"a handler ({error!r})"


def _log(event: str, about: Any, message: str, *values: object, **attributes: Any) -> None:
    """A warning about a task; about: what it is about."""
    log(
        "multiplexing",
        event,
        message,
        describe(about),
        *values,
        server=getattr(about, "server", None),
        peer=getattr(about, "client_address", None),
        **attributes,
    )


def _held(about: Any, seconds: float) -> None:
    """The hub's call when a task has given up the thread that it held for too long."""
    if seconds < getattr(about, "threshold", 0):
        return
    _log(
        "held",
        about,
        "%s has held the loop for %.2f s, in which no other could run",
        seconds,
        seconds=seconds,
    )


def _refuses(task: Task) -> None:
    """The hub's call when it gives up a task that was told to end, again and again."""
    crew: Tasks = task.tasks
    crew.running.discard(task)
    crew._tell()
    _log(
        "does_not_end",
        task.about,
        "%s does not end though GreenletExit is raised: it is left alone",
    )


class Watch:
    """A thread that tells of a task which holds a hub's thread and does not give it up."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._process = os.getpid()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="fastsock watch", daemon=True)
        self._started = False
        with contextlib.suppress(RuntimeError):  # no thread can be started: it serves all the same
            self._thread.start()
            self._started = True

    def close(self) -> None:
        if self._started and self._process == os.getpid():  # otherwise it is the parent's
            self._over.set()
            self._thread.join()

    def _look(self) -> None:
        hub, seen, told, since = self._hub, -1, -1, 0.0
        while not self._over.wait(LOOK_EVERY):
            switches = hub.switches
            if hub.asleep or switches != seen:
                seen, since = switches, 0.0
                continue
            since += LOOK_EVERY
            if since >= HELD_TOO_LONG and told != seen:
                told = seen
                self._tell(since)

    def _tell(self, seconds: float) -> None:
        import traceback

        frame = sys._current_frames().get(self._hub.thread)
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        _log(
            "holds",
            self._hub.current.about,
            "%s holds the loop for %.1f s by now, no other can run; it is at\n%s",
            seconds,
            stack.rstrip(),
            seconds=seconds,
        )


class Serving:
    """A context: the serve loop runs in main; when it has ended, the handlers end.

    If it was left with an exception they stay suspended, and nobody waits for them any more.
    """

    def __init__(self, servers: list[Any], tasks: list[Tasks], end: Callable[[Any], None]) -> None:
        self._servers = servers
        self._tasks = tasks
        self._end = end
        self._hub = tasks[0].hub

    def __enter__(self) -> Hub:
        if not is_main(self._hub):
            raise RuntimeError("a multiplexing server cannot be served by a handler of one")
        self._hub.active = True
        self._hub.set_threshold(min(server.slow_handler_threshold for server in self._servers))
        self._mute_listeners()
        self._watch = Watch(self._hub)
        return self._hub

    def _mute_listeners(self) -> None:
        """Where other processes accept from the same listener, one that is too late must not block.

        The loop would, and all handlers with it. There is no flag for one accept(2).
        """
        self._muted: list[tuple[socket.socket, int]] = []
        for server in self._servers:
            listener = getattr(server, "socket", None)
            if not isinstance(listener, socket.socket) or (descriptor := listener.fileno()) < 0:
                continue
            if listener.type != socket.SOCK_DGRAM and os.get_blocking(descriptor):
                os.set_blocking(descriptor, False)
                self._muted.append((listener, descriptor))

    def __exit__(self, kind: Any, *exception: object) -> None:
        for listener, descriptor in self._muted:
            if listener.fileno() == descriptor and listener.gettimeout() is None:
                os.set_blocking(descriptor, True)
        try:
            if kind is None:
                for server in self._servers:
                    self._end(server)
        finally:
            self._hub.active = False
            for tasks in self._tasks:
                tasks.given_up()
            self._watch.close()
            release(self._hub)


# --- forks and the end


def _before_fork() -> None:
    hub: Hub | None = getattr(_here, "hub", None)
    if hub is not None:
        hub.settle_before_fork()


def _after_fork_in_child() -> None:
    crews = list(_crews)
    for hub in list(_all):
        hub.abandon([task for crew in crews if crew.hub is hub for task in crew.running])
    for crew in crews:
        crew.running.clear()
        crew._waiting.clear()


def _at_exit() -> None:
    """Unwind the tasks of the main thread, so that what they hold is given up in order."""
    hub: Hub | None = getattr(_here, "hub", None)
    if hub is None or not is_main(hub):
        return
    for tasks in list(_crews):
        if tasks.hub is hub and tasks.running:
            tasks.kill()
            tasks.join()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
