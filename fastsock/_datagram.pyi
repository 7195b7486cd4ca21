from typing import Any

def waiting(sock: Any) -> int: ...
def sent(sock: Any) -> int: ...
def genuine() -> bool: ...
def initialised(sock: Any) -> None: ...
def reply(
    sock: Any, data: bytes, request: object, client_address: object, server: object
) -> None: ...

# The methods of DatagramSocket, whose types are those of socket.socket.
recv: Any
recv_into: Any
recvfrom: Any
recvfrom_into: Any
recvmsg: Any
recvmsg_into: Any
send: Any
sendall: Any
sendto: Any
sendmsg: Any
fileno: Any
detach: Any
dup: Any
_real_close: Any
