from typing import Any, Literal

def report(
    topic: str,
    event: str,
    message: str,
    *values: object,
    server: Any = None,
    peer: Any = None,
    level: Literal["debug", "info", "warning", "error"] = "warning",
    **attributes: object,
) -> None: ...
def raised_by_signal_handler(error: BaseException) -> bool: ...
