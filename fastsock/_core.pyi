from collections.abc import Callable
from typing import Any

from fastsock._plain import Wait

class Defaults:
    def __init__(
        self,
        *,
        accept: Callable[..., Any],
        receive: Callable[..., Any],
        verify_request: Callable[..., Any],
        process_request: Callable[..., Any],
        finish_request: Callable[..., Any],
        handle_request_noblock: Callable[..., Any],
        pair: Callable[[Any], tuple[Any, Any]],
    ) -> None: ...

class Control:
    stop: Any
    @property
    def accept_errors(self) -> dict[int, int]: ...
    @property
    def start_failures(self) -> int: ...
    def __init__(self) -> None: ...
    def released(self) -> None: ...
    def start_failed(self) -> None: ...

class Loop:
    def __init__(
        self, poll_interval: float | None, defaults: Defaults, wait: Wait | None
    ) -> None: ...
    def add(self, server: Any, control: Control, ended: Callable[[], object]) -> None: ...
    def run(self) -> None: ...
    def close(self) -> None: ...

def dispatch(server: Any, control: Control, defaults: Defaults) -> None: ...
def handle_one(
    server: Any,
    control: Control,
    defaults: Defaults,
    timeout: float | None,
    wait: Wait | None,
) -> tuple[bool, Any]: ...
