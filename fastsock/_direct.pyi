from io import BufferedIOBase
from typing import Any

class DirectWriter(BufferedIOBase):
    def __init__(self, sock: Any) -> None: ...

def stand_for(cls: type[BufferedIOBase]) -> None: ...
