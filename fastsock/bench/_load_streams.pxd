from fastsock._clock cimport nanoseconds
from fastsock.bench._load_base cimport Error, Load
from fastsock.bench._calls cimport epoll_event

cdef enum:
    EVENTS = 256  # that one epoll_wait(2) brings

cdef enum State:
    CLOSED  # no socket; of a lasting connection: nor will there be one, unless run() makes it
    RESTING  # no socket; to be dialled at `since`
    QUEUED  # in the queue of those that are to be dialled, with a socket or without
    UNDER_WAY  # connecting, sending or receiving
    SILENT  # connected, nothing under way


cdef struct Client:
    int fd  # owned; -1: none
    State state
    unsigned int watched  # what the epoll is asked for; 0: not in it yet
    bint connected
    size_t unsent  # bytes of what is under way
    size_t unread  # bytes of the echo; or responses that are not complete
    nanoseconds since  # it began; or when a resting one is to be dialled
    long served  # rounds
    char *header  # owned: the beginning of a response's header; NULL: none
    size_t held  # bytes of it
    size_t body_left  # bytes; 0: a header comes next


cdef class StreamLoad(Load):
    cdef Client *clients  # owned: the busy ones, then the idle ones
    cdef Client **queue  # owned: a ring of those that wait to be dialled
    cdef char *chunk  # owned: what recv(2) brings
    cdef epoll_event events[EVENTS]
    cdef Py_ssize_t busy, idle
    cdef Py_ssize_t dialled, opened  # of all, during open()
    cdef size_t queue_first, queued
    cdef bint opening, per_request, http, cold
    cdef size_t depth
    cdef bytes messages  # `depth` requests in a row; of an echo this is also the answer
    cdef bytes body
    cdef const char *request
    cdef size_t request_size
    cdef const char *answer
    cdef size_t answer_size

    cdef void dial(self, Client *c) noexcept nogil
    cdef bint connects(self, Client *c) noexcept nogil
    cdef bint make_socket(self, Client *c) noexcept nogil
    cdef void enqueue(self, Client *c) noexcept nogil
    cdef void advance(self) noexcept nogil
    cdef void begin(self, Client *c, nanoseconds since) noexcept nogil
    cdef bint watch(self, Client *c, unsigned int events) noexcept nogil
    cdef void sends(self, Client *c) noexcept nogil
    cdef bint reads(self, Client *c) noexcept nogil
    cdef Error take_echo(self, Client *c, size_t got) noexcept nogil
    cdef Error take_response(self, Client *c, size_t got) noexcept nogil
    cdef Error take_header(self, Client *c, const char **at, const char *end) noexcept nogil
    cdef Error take_body(self, Client *c, const char **at, const char *end) noexcept nogil
    cdef void done(self, Client *c) noexcept nogil
    cdef void disturbed(self, Client *c) noexcept nogil
    cdef void failed(self, Client *c, Error kind) noexcept nogil
    cdef void drop(self, Client *c) noexcept nogil
    cdef void sweep(self, nanoseconds now) noexcept nogil
    cdef nanoseconds turn(self, nanoseconds until) noexcept nogil
    cdef void open_more(self, nanoseconds until) noexcept nogil
