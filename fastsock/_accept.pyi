# Apart from this nothing of the module can be called from Python: _control cimports it.
import socket

GENUINE: type[socket.socket] | None

def unpatched() -> bool: ...
