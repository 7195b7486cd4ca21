NAMES: tuple[str, str, str, str]

class DeadlineError(TimeoutError):
    which: str
    def __init__(self, *arguments: object, which: str = "") -> None: ...
