from fastsock._channel cimport Borrower, Channel
from fastsock._clock cimport nanoseconds
from fastsock._tasks cimport Scheduler, Task


cdef class Hub(Scheduler)


cdef class Slot:
    cdef readonly Hub hub
    cdef unsigned int place
    cdef int descriptor  # -1: released
    cdef int copy  # of it, which is in the epoll in its place; -1: none
    cdef bint foreign  # no connection's
    cdef bint kept  # the same, by one who tells when it is closed
    cdef bint readable
    cdef bint writable
    cdef bint ended  # the peer sends no more
    cdef Task reader
    cdef Task writer
    cdef list others  # who waits besides
    cdef Task sender  # in the middle of sending something


cdef class Hub(Scheduler):
    cdef char *incoming
    cdef char *outgoing
    cdef Borrower borrower  # of incoming
    cdef Channel sender  # whose bytes are in outgoing
    cdef object sending  # its connection
    cdef size_t held  # so many
    cdef void **table  # of slots, by place; they are not owned
    cdef unsigned int *generations
    cdef unsigned int room
    cdef list free_places
    cdef dict foreign

    cdef Slot new_slot(self, int descriptor, unsigned int events)
    cdef Slot slot_or_copy(self, int descriptor, unsigned int events)
    cdef Slot enrol(self, Channel channel, int descriptor)
    cdef void release_slot(self, Slot slot) noexcept
    cdef int wait_for(self, Slot slot, bint writing, nanoseconds deadline) except -1
    cdef int wake_others(self, Slot slot, unsigned int events) except -1
    cdef int wait_a_while(self, Task task, int descriptor, bint read, bint write,
                          nanoseconds deadline) except -1
    cdef int give_up(self, Slot slot) except -1
    cdef Slot watch(self, Task task, int descriptor, bint read, bint write)
    cdef Slot foreign_slot(self, int descriptor)
    cdef int unlink_from(self, Task task, Slot slot) except -1
    cdef int queue_for(self, Slot slot, nanoseconds deadline) except -1
    cdef int rearm(self, Slot slot) except -1
    cdef int flush(self) except -1
    cdef int send_held(self, Channel channel) except -1
    cdef int raise_failed(self, Channel channel) except -1
    cdef Py_ssize_t receive_some(self, Channel channel, object connection, char *into, size_t size,
                                 int flags) except -1
    cdef Py_ssize_t send_all(self, Channel channel, object connection, const char *data,
                             size_t size, int flags, bint all_of_it) except -1
