from typing import Any, TypeVar

from fastsock._waiter import Endpoint

_C = TypeVar("_C")

class Channel(Endpoint): ...

def adopt(cls: type[_C], connection: Any) -> _C: ...
def initialised(connection: Any) -> None: ...
