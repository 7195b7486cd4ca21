from fastsock._channel cimport Channel
from fastsock._waiter cimport Borrower, flag


cdef class Stream(Borrower):
    cdef dict __dict__
    cdef object __weakref__
    cdef object connection  # None once the stream is closed
    cdef Channel channel
    cdef object socket_io  # what `raw` is: made when it is asked for, and then the owner of the
    #                        connection's reference
    cdef flag is_closed
    cdef flag detached
    cdef flag timed_out
    cdef flag borrowed  # the buffer belongs to the channel's waiter
    cdef flag busy  # a thread is inside
    cdef flag spoiled  # a line was too long: nothing more is read
    cdef unsigned long owner
    cdef object task  # the one of a hub that is inside, or None
    cdef object gate  # a lock that the others wait for, or None
    cdef list tasks  # of a hub, that wait for it too, or None
    cdef unsigned int size  # of the buffer, as asked for
    cdef unsigned int longest  # line that a reader takes
    cdef char *buffer
    cdef size_t start  # of the bytes in the buffer
    cdef size_t end
    cdef size_t room

    cdef str mode(self)
    cdef int enter(self, str what) except -1
    cdef object task_here(self)
    cdef int await_turn(self) except -1
    cdef int leave(self) except -1
    cdef int check_open(self, str what) except -1
    cdef int check_attached(self) except -1
    cdef int check_usable(self, str what) except -1
    cdef bint raw_closed(self) except -1
    cdef object socket_file(self)
    cdef int make_room(self, size_t room) except -1
    cdef int release(self) except -1


cdef int unsupported(str name) except -1
cdef Py_ssize_t optional_size(object size) except? -1
