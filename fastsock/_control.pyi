from collections.abc import Callable
from typing import Any, Protocol

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

class Wakeup: ...

class Defaults:
    thread_request: Callable[..., Any]
    thread_target: Callable[..., Any]
    def __init__(
        self,
        *,
        accept: Callable[..., Any],
        receive: Callable[..., Any],
        verify_request: Callable[..., Any],
        process_request: Callable[..., Any],
        finish_request: Callable[..., Any],
        handle_request_noblock: Callable[..., Any],
        shutdown_request: Callable[..., Any],
        close_request: Callable[..., Any],
        service_actions: Callable[..., Any],
        fileno: Callable[..., Any],
        connection: type,
        pair: Callable[[Any], tuple[Any, Any]],
    ) -> None: ...

class Control:
    stop: Any
    owner: int | None
    pool: Any
    watched: _HasFileno | None
    on_watched: Callable[[Any], bool] | None
    before_sleep: Callable[[Any], None] | None
    @property
    def singly(self) -> int: ...
    @property
    def accept_errors(self) -> dict[int, int]: ...
    @property
    def start_failures(self) -> int: ...
    def __init__(self) -> None: ...
    def wake(self) -> int: ...
    def released(self) -> int: ...
    def hold(self, instead: _HasFileno) -> bool: ...
    def let_go(self, instead: _HasFileno) -> None: ...
    def takes_here(self) -> bool: ...
    def bound(self, sock: Any) -> None: ...
    def start_failed(self) -> None: ...

def begin_in_thread(
    server: Any, control: Control, defaults: Defaults, request: Any, client_address: Any
) -> bool: ...
def dispatch(server: Any, control: Control, defaults: Defaults) -> None: ...
