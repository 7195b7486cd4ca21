from collections.abc import Callable
from typing import Any

from fastsock._control import Control
from fastsock._hooks import Defaults
from fastsock._hub import Hub
from fastsock._plain import Wait

class Loop:
    def __init__(
        self,
        poll_interval: float | None,
        defaults: Defaults,
        wait: Wait | None,
        hub: Hub | None = None,
    ) -> None: ...
    def add(
        self, server: Any, control: Control, ended: Callable[[Any], object], own_flag: bool
    ) -> None: ...
    def run(self) -> None: ...
    def close(self) -> None: ...

def handle_one(
    server: Any,
    control: Control,
    defaults: Defaults,
    timeout: float | None,
    wait: Wait | None,
) -> tuple[bool, Any]: ...
