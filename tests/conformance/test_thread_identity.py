"""ThreadingMixIn: what a handler sees of its thread is what it would see of a new one."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import decimal
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inside import Inside
from support import TIMEOUT, WORKER_NAME, Background, about_threads, connect, wait_until

Make = Callable[..., Any]


@pytest.fixture
def inside(ss: ModuleType, make: Make) -> Inside:
    return Inside(ss, make)


@pytest.fixture
def held(inside: Inside) -> Any:
    """A request that lasts until its event is set: (call, event)."""
    go_on = threading.Event()
    call = inside.start(lambda: go_on.wait(TIMEOUT))
    yield call, go_on
    go_on.set()
    call.result()


@about_threads("reused threads")
@pytest.mark.fastsock_only(reason="the standard library starts a thread for each request")
def test_threads_are_reused(ss: ModuleType, inside: Inside) -> None:
    """The others here would prove nothing without it."""
    found = [
        inside(lambda: (threading.get_native_id(), threading.current_thread())) for _ in range(20)
    ]
    assert len({native_id for native_id, _ in found}) < len({thread for _, thread in found}) == 20


# --- what a handler leaves behind

LOCAL = threading.local()


class DerivedLocal(threading.local):
    def __init__(self, start: list[Any]) -> None:
        self.values = [*start]


class SlottedLocal(threading.local):
    kind = "class"
    __slots__ = ("slot",)  # shared by all threads (documented)


DERIVED = DerivedLocal([1])
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE")
SIGNALS = {signal.SIGUSR1, signal.SIGUSR2}


class Loop:
    """Stands in for an event loop; stays alive."""


LOOP_LEFT: Any = Loop()


def leave_exception() -> None:
    LOCAL.error = ValueError("left")
    try:
        raise LOCAL.error
    except ValueError as error:
        LOCAL.traceback = error.__traceback__
        raise KeyError("from the handler") from error


def context_of_error() -> Any:
    try:
        raise KeyError
    except KeyError as error:
        return sys.exc_info()[0], error.__context__, error.__cause__


def event_loop() -> Any:
    try:
        return asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        return None


def hook(*args: Any) -> None:
    pass


# What a handler does, and how it is seen: afterwards it is seen as in a new threading.Thread.
LEFT: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "local": (lambda: setattr(LOCAL, "value", 1), lambda: vars(LOCAL).copy()),
    "local, derived": (lambda: DERIVED.values.append(2), lambda: [*DERIVED.values]),
    "ContextVar": (lambda: VARIABLE.set("set"), lambda: VARIABLE.get("unset")),
    "context": (
        lambda: VARIABLE.set("set"),
        lambda: VARIABLE in contextvars.copy_context(),
    ),
    "decimal": (
        lambda: setattr(decimal.getcontext(), "prec", 5),
        lambda: str(decimal.Decimal(1) / 3),
    ),
    "thread attribute": (
        lambda: setattr(threading.current_thread(), "left", 1),
        lambda: hasattr(threading.current_thread(), "left"),
    ),
    "thread name": (
        lambda: setattr(threading.current_thread(), "name", "mine"),
        lambda: threading.current_thread().name == "mine",
    ),
    "trace": (lambda: sys.settrace(hook), sys.gettrace),
    "profile": (lambda: sys.setprofile(hook), sys.getprofile),
    "signal mask": (
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    ),
    "asyncgen hooks": (lambda: sys.set_asyncgen_hooks(hook, hook), sys.get_asyncgen_hooks),
    "asyncgen finalizer": (
        lambda: sys.set_asyncgen_hooks(finalizer=hook),
        sys.get_asyncgen_hooks,
    ),
    "coroutine origins": (
        lambda: sys.set_coroutine_origin_tracking_depth(3),
        sys.get_coroutine_origin_tracking_depth,
    ),
    "running loop": (lambda: asyncio._set_running_loop(LOOP_LEFT), asyncio._get_running_loop),
    "ctypes errno": (lambda: ctypes.set_errno(5), ctypes.get_errno),
}


OF_THE_CONTEXT = ("ContextVar", "context", "decimal")  # a request has one of its own


@pytest.mark.parametrize(
    "what",
    [
        name
        if name in OF_THE_CONTEXT
        else pytest.param(name, marks=about_threads("left in the thread that handlers share"))
        for name in LEFT
    ],
)
def test_left_behind(inside: Inside, what: str) -> None:
    leave, look = LEFT[what]
    expected = Background(look).result()

    def change() -> Any:
        before = look()
        leave()
        return before, look()

    def check() -> Any:
        before, changed = change()
        assert before == expected
        assert changed != expected
        return before

    assert inside.after(check, look) == expected
    for _ in range(5):
        inside(check)


@about_threads("asyncio's current loop is a threading.local")
@pytest.mark.filterwarnings("ignore:.*asyncio.*:DeprecationWarning")
def test_event_loop_left_behind(inside: Inside) -> None:
    loop = asyncio.new_event_loop()
    policy = asyncio.get_event_loop_policy()
    assert inside.after(lambda: policy.set_event_loop(loop), event_loop) is None
    loop.close()


def test_exception_left_behind(inside: Inside) -> None:
    def first() -> None:
        with pytest.raises(KeyError):
            leave_exception()
        raise RuntimeError("of the handler")  # kept by the Call, with its frames

    inside.start(first).join()
    assert inside.after(lambda: None, lambda: (*sys.exc_info(), *context_of_error())) == (
        *(None, None, None),
        *(KeyError, None, None),
    )


def test_values_of_the_serving_thread(inside: Inside) -> None:
    """A new thread or greenlet begins with an empty context, a thread with no local of anybody."""
    token = VARIABLE.set("server")
    LOCAL.value = "server"
    local = vars(LOCAL).copy() if inside.multiplexes else {}
    try:
        for _ in range(3):
            assert inside(lambda: (VARIABLE.get("unset"), vars(LOCAL).copy())) == ("unset", local)
    finally:
        del LOCAL.value
        VARIABLE.reset(token)


@about_threads("threading.local is shared")
def test_local_class_is_made_anew(inside: Inside) -> None:
    made = []

    class Local(threading.local):
        def __init__(self, *args: Any) -> None:
            made.append((threading.get_ident(), args))
            self.values: list[int] = []

    local = Local("argument")
    made.clear()

    def use() -> Any:
        local.values.append(1)
        return threading.get_ident(), local.values

    idents = []
    for _ in range(4):
        ident, values = inside(use)
        idents.append(ident)
        assert values == [1]
    assert made == [(ident, ("argument",)) for ident in idents]


def test_slots_of_a_local_are_shared(inside: Inside) -> None:
    local = SlottedLocal()
    local.slot = "main"
    assert inside.after(lambda: setattr(local, "slot", "first"), lambda: local.slot) == "first"
    assert local.kind == "class"


class Finalized:
    """Calls a function when it is dropped."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


@about_threads("threading.local is shared")
def test_local_is_finalized_with_the_request(inside: Inside) -> None:
    """In its thread, when threading does not know that any more, before join() returns."""
    local = threading.local()
    seen: list[Any] = []

    def fill() -> None:
        thread = threading.current_thread()
        local.value = Finalized(
            lambda: seen.append((threading.get_ident(), thread in threading.enumerate()))
        )

    for _ in range(3):
        call = inside.start(fill)
        call.result()
        assert seen.pop() == (call.ident, False)
        assert seen == []


@about_threads("threading.local is shared")
@pytest.mark.parametrize("times", [1, 3, 50])
def test_finalizer_fills_the_local_again(inside: Inside, times: int) -> None:
    local = threading.local()
    left = [0]

    def refill() -> None:
        if left[0]:
            left[0] -= 1
            local.value = Finalized(refill)

    def first() -> None:
        local.value = Finalized(refill)
        left[0] = times

    assert inside.after(first, lambda: vars(local).copy()) == {}
    left[0] = 0


@about_threads("threading.local is shared")
def test_finalizer_asks_for_the_thread(inside: Inside) -> None:
    """threading makes it a dummy then; the next request's is its own."""
    local = threading.local()
    seen: list[Any] = []

    def first() -> None:
        local.value = Finalized(lambda: seen.append(threading.current_thread()))

    thread, known = inside.after(first, lambda: (threading.current_thread(), threading.enumerate()))
    assert WORKER_NAME.fullmatch(thread.name)
    assert thread in known
    assert not set(seen) & {thread}
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        for dummy in seen:  # the standard library's remain
            threading._active.pop(dummy.ident, None)  # type: ignore[attr-defined]


@about_threads("threading.local is shared")
def test_finalizer_raises(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_type))
    local = threading.local()

    def first() -> None:
        local.value = Finalized(lambda: [].pop())

    assert inside.after(first, lambda: vars(local).copy()) == {}
    assert seen and set(seen) == {IndexError}


# --- exceptions and hooks from outside

raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Stop(BaseException):
    pass


@about_threads("the thread of a request outlives it")
def test_exception_raised_in_a_thread_that_has_ended(inside: Inside) -> None:
    """PyThreadState_SetAsyncExc() comes too late: the next request is not the one meant."""
    for _ in range(10):
        call = inside.start(lambda: None)
        call.result()
        # not "found", or found at rest
        assert raise_in(ctypes.c_ulong(call.ident), ctypes.py_object(Stop)) in (0, 1)
        assert inside(lambda: sum(range(100))) == 4950


@about_threads("trace functions are the serving thread's")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in Python 3.12")
@pytest.mark.parametrize("what", ["trace", "profile"])
def test_hook_set_in_all_threads(inside: Inside, what: str) -> None:
    """...is not in one that begins later."""
    get = getattr(sys, f"get{what}")
    inside(lambda: None)
    getattr(threading, f"set{what}_all_threads")(hook)
    getattr(threading, f"set{what}")(None)
    getattr(sys, f"set{what}")(None)
    assert inside(get) is None


@about_threads("trace functions are the serving thread's")
@pytest.mark.parametrize("what", ["trace", "profile"])
def test_hook_of_threading(inside: Inside, what: str) -> None:
    """threading.settrace() and setprofile() hold for every request that begins afterwards."""
    get, set_, set_own = (
        getattr(sys, f"get{what}"),
        getattr(threading, f"set{what}"),
        getattr(sys, f"set{what}"),
    )
    calls: list[Any] = []

    def called(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls.append((threading.get_ident(), frame.f_code.co_name))

    assert inside(get) is None
    set_(called)
    try:
        for own in (None, hook, None):
            calls.clear()
            call = inside.start(lambda own=own: (get(), set_own(own)))
            assert call.result() == (called, None)
            assert (call.ident, "process_request_thread") in calls
            assert {ident for ident, _ in calls} == {call.ident}
    finally:
        set_(None)
    for _ in range(3):
        assert inside(get) is None


# --- as good as new


def test_asyncio(inside: Inside) -> None:
    async def numbers() -> Any:
        for number in range(3):
            await asyncio.sleep(0)
            yield number

    async def work() -> Any:
        async for number in numbers():  # not exhausted
            if number == 1:
                break
        return asyncio.get_running_loop(), await asyncio.gather(asyncio.sleep(0, "a"))

    for _ in range(4):
        _, result = inside(lambda: asyncio.run(work()))
        assert result == ["a"]
        assert inside(asyncio._get_running_loop) is None


def test_recursion(inside: Inside) -> None:
    """As deep in the tenth request as in the first, though each went too deep."""

    def deepest() -> int:
        depth = 0

        def deeper() -> None:
            nonlocal depth
            depth += 1
            deeper()

        with pytest.raises(RecursionError):
            deeper()
        return depth

    assert len({inside(deepest) for _ in range(10)}) == 1


@about_threads("the stack is the serving thread's")
def test_stack_size(inside: Inside) -> None:
    """threading.stack_size() holds for every request that begins afterwards."""

    def stack() -> int:
        libc = ctypes.CDLL(None)
        attributes = ctypes.create_string_buffer(256)  # pthread_attr_t, and to spare
        size = ctypes.c_size_t()
        libc.pthread_self.restype = ctypes.c_void_p
        assert libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes) == 0
        assert libc.pthread_attr_getstacksize(attributes, ctypes.byref(size)) == 0
        return size.value

    before = threading.stack_size()
    try:
        for size in (16 << 20, 32 << 20):  # a larger one may be left of an ended thread
            threading.stack_size(size)
            assert inside.after(lambda: None, stack) >= size
    finally:
        threading.stack_size(before)


@about_threads("thread names")
def test_name_of_the_os(inside: Inside) -> None:
    """Since 3.14 a thread has its name there, too."""

    def names() -> tuple[str, str]:
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text()
        return comm.strip(), threading.current_thread().name

    def rename() -> None:
        threading.current_thread().name = "renamed"

    of_process = Path("/proc/self/comm").read_text().strip()
    for comm, name in (inside(names), inside.after(rename, names)):
        assert comm == (name.encode()[:15].decode() if sys.version_info >= (3, 14) else of_process)


@about_threads("thread ids")
def test_ids(inside: Inside) -> None:
    for _ in range(3):
        call = inside.start(lambda: (threading.get_ident(), threading.get_native_id(), os.getpid()))
        ident, native_id, pid = call.result()
        assert (call.thread.ident, call.thread.native_id) == (ident, native_id)
        assert native_id != pid


@about_threads("the repr of a thread")
def test_repr(inside: Inside, held: Any) -> None:
    call, go_on = held
    name = rf"<\w*Thread\({WORKER_NAME.pattern}"
    assert re.fullmatch(rf"{name}, started {call.ident}\)>", repr(call.thread))
    go_on.set()
    call.result()
    assert re.fullmatch(rf"{name}, stopped {call.ident}\)>", repr(call.thread))
    inside.server.daemon_threads = True
    shown = inside(lambda: (repr(threading.current_thread()), threading.get_ident()))
    assert re.fullmatch(rf"{name}, started daemon {shown[1]}\)>", shown[0])


@about_threads("thread names")
def test_names_are_new(inside: Inside) -> None:
    names = [inside(lambda: threading.current_thread().name) for _ in range(5)]
    assert len(set(names)) == 5
    assert all(WORKER_NAME.fullmatch(name) for name in names)
    threads = [inside.start(lambda: None) for _ in range(5)]
    late = [call.thread.name for call in threads]  # asked when the request is over
    assert len({*late, *names}) == 10
    assert all(WORKER_NAME.fullmatch(name) for name in late)


@about_threads("thread names")
def test_named_after_the_method(ss: ModuleType, make: Make) -> None:
    names: list[str] = []

    class Server(ss.ThreadingTCPServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            names.append(threading.current_thread().name)
            super().process_request_thread(request, client_address)

        process_request_thread.__name__ = "work"

    server = make(Server)
    for count in range(1, 4):
        with connect(server):
            server.handle_request()
            wait_until(lambda count=count: len(names) == count)
    assert all(re.fullmatch(r"Thread-\d+ \(work\)", name) for name in names)
