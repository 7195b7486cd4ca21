from collections.abc import Callable
from typing import Any

class Defaults:
    @property
    def thread_target(self) -> Callable[..., Any]: ...
    def set_threads(
        self,
        process_request: Callable[..., Any],
        process_request_thread: Callable[..., Any],
    ) -> None: ...
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
        datagram_socket: type,
        shutdown_datagram: Callable[..., Any],
        close_datagram: Callable[..., Any],
        handle_truncated: Callable[..., Any],
        pair: Callable[[Any], tuple[Any, Any]],
    ) -> None: ...
