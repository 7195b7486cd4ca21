from fastsock._clock cimport nanoseconds
from fastsock._main_greenlet cimport MainScheduler
from fastsock._tasks cimport Task
from fastsock._waiter cimport flag


cdef enum Messages:
    SEPARATE  # a receive may stop where one ends, or nothing is known
    UNIX  # where one ends with which something came besides bytes
    NONE  # a stream of bytes, but for TCP's urgent mark


cdef class Descriptors(MainScheduler)


cdef class Slot:
    cdef readonly Descriptors hub
    cdef unsigned int place
    cdef int descriptor  # -1: released
    cdef int copy  # of it, which is in the epoll in its place; -1: none
    cdef flag foreign  # no connection's
    cdef flag kept  # the same, by one who tells when it is closed
    cdef flag readable
    cdef flag writable
    cdef flag ended  # the peer sends no more
    cdef flag marked  # it has sent urgent data, at which a receive stops
    cdef flag messages  # of Messages
    cdef Task reader
    cdef Task writer
    cdef list others  # who waits besides
    cdef Task sender  # in the middle of sending something

    cdef Py_ssize_t receive(self, int descriptor, char *into, size_t size, int flags) noexcept


cdef class Descriptors(MainScheduler):
    cdef void **table  # of slots, by place; they are not owned
    cdef unsigned int *generations
    cdef unsigned int room
    cdef list free_places
    cdef dict foreign

    cdef Slot slot_of_event(self, unsigned int place, unsigned int generation)
    cdef int happened_elsewhere(self, Slot slot, unsigned int events) except -1
    cdef Slot new_slot(self, int descriptor, unsigned int events)
    cdef Slot slot_or_copy(self, int descriptor, unsigned int events)
    cdef void release_slot(self, Slot slot) noexcept
    cdef int wake_others(self, Slot slot, unsigned int events) except -1
    cdef int wait_a_while(self, Task task, int descriptor, bint read, bint write,
                          nanoseconds deadline) except -1
    cdef int give_up(self, Slot slot) except -1
    cdef Slot watch(self, Task task, int descriptor, bint read, bint write)
    cdef Slot foreign_slot(self, int descriptor)
    cdef int unlink_from(self, Task task, Slot slot) except -1
    cdef int rearm(self, Slot slot) except -1
