from typing import Any

from fastsock._descriptors import Descriptors

class Hub(Descriptors):
    def adopt(self, connection: Any) -> None: ...
    def take_turn(self, count: int) -> None: ...
