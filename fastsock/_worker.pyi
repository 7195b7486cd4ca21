from collections.abc import Callable
from threading import Thread
from typing import Any, Protocol

from fastsock._genuine import Genuine

class _Joinable(Protocol):
    def join(self) -> None: ...

class Pool:
    idle_timeout: float
    @property
    def running(self) -> int: ...
    @property
    def peak(self) -> int: ...
    @property
    def idle(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def __init__(
        self,
        *,
        start_thread: Callable[[Callable[[], None], bool], _Joinable],
        last_words: Callable[[Thread], None],
        idle_timeout: float,
        thread_class: type[Thread],
        list_class: type,
        genuine: Genuine,
        starter: str,
    ) -> None: ...
    def run(
        self,
        thread: Thread,
        target: Callable[..., object],
        arguments: tuple[Any, ...],
        daemon: bool,
    ) -> None: ...
    def flush(self) -> int: ...
    def works_here(self) -> bool: ...
    def release(self) -> None: ...
    def close(self) -> list[_Joinable]: ...

def resets() -> bool: ...
def pools() -> list[Pool]: ...
