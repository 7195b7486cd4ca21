from io import BufferedReader
from typing import Any

# For isinstance() and for type checkers; it has a class of its own.
def Reader(connection: Any, size: int) -> BufferedReader: ...
