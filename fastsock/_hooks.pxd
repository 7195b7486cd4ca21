# Attributes of a server that may be the defaults, of which the core knows what they do: bits.
cdef enum Hook:
    ACCEPT = 1 << 0  # the get_request of a stream server
    RECEIVE = 1 << 1  # that of a datagram server
    VERIFY = 1 << 2
    PROCESS = 1 << 3
    THREAD_PROCESS = 1 << 4  # ThreadingMixIn.process_request
    THREAD_TARGET = 1 << 5  # ThreadingMixIn.process_request_thread
    FINISH = 1 << 6
    SHUTDOWN = 1 << 7  # the shutdown_request of a stream server
    CLOSE = 1 << 8
    SHUTDOWN_DATAGRAM = 1 << 9
    CLOSE_DATAGRAM = 1 << 10
    NOBLOCK = 1 << 11  # _handle_request_noblock
    ACTIONS = 1 << 12  # service_actions
    FILENO = 1 << 13
    TRUNCATED = 1 << 14  # handle_truncated
    PROMPT = 1 << 15  # lingering_close is False
    UNLIMITED = 1 << 16  # max_connections is None
    UNLIMITED_PER_PEER = 1 << 17
    ALL = (1 << 18) - 1
    ASK = 1 << 30  # Python code has a say: each is to be looked up as Python does


cdef class Defaults:
    cdef list values  # in the order of the bits
    cdef object connection
    cdef object datagram_socket
    cdef object pair


cdef class Hooks:
    cdef unsigned int version
    cdef unsigned int of_class

    cdef unsigned int look(self, object server, Defaults defaults, unsigned int hooks) noexcept


cdef bint untouched(object server, Defaults defaults, unsigned int looked, Hook hook) except -1
