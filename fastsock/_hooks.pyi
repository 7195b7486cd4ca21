from collections.abc import Callable
from typing import Any

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
        datagram_socket: type,
        shutdown_datagram: Callable[..., Any],
        close_datagram: Callable[..., Any],
        handle_truncated: Callable[..., Any],
        pair: Callable[[Any], tuple[Any, Any]],
    ) -> None: ...
