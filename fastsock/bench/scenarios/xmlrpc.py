"""xmlrpc.server, which serves one call at a time."""

import xmlrpc.client
import xmlrpc.server

TITLE = "SimpleXMLRPCServer, add(2, 3), a connection per call"
LOAD = "http-close"
CONNECTIONS = (16,)
CALL = xmlrpc.client.dumps((2, 3), "add").encode()
REQUEST = (
    b"POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(CALL), CALL)
)
BODY = xmlrpc.client.dumps((5,), methodresponse=True).encode()

Handler = xmlrpc.server.SimpleXMLRPCRequestHandler


class Server(xmlrpc.server.SimpleXMLRPCServer):
    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        super().__init__(address, handler, logRequests=False)
        self.register_function(lambda one, other: one + other, "add")
