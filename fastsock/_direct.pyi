from io import BufferedIOBase
from typing import Any

class DirectWriter(BufferedIOBase):
    def __init__(self, connection: Any, cls: type) -> None: ...
