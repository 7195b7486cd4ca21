from fastsock cimport _sys
from fastsock._clock cimport nanoseconds
from fastsock._timers cimport Timed, Timers
from fastsock._waiter cimport Waiter, flag


cdef enum Outcome:
    WAITING
    READY  # to try again, or woken
    DONE  # the hub has received for it
    TIMED_OUT
    CLOSED


cdef enum Place:
    # In the place of a slot's: the bell, and what the loop polls.
    BELL = 0xFFFFFFFE
    LOOP = 0xFFFFFFFF


cdef nanoseconds deadline_after(double seconds) noexcept


cdef class Scheduler(Waiter)


cdef class Task(Timed):
    cdef object __weakref__
    cdef readonly object greenlet  # the one that waits, of those it may have
    cdef readonly Scheduler hub
    cdef Task next  # in the queue of those that are ready
    cdef flag queued
    cdef flag doomed  # it is to end: whatever it waits for raises GreenletExit
    cdef unsigned char refusals  # to end
    cdef unsigned char outcome  # of its wait
    cdef short wants  # POLLIN, POLLOUT or both: of a descriptor that isn't a connection's
    cdef int error
    cdef object slot  # of a descriptor that it waits for, or None
    # where the hub is to receive to before it is resumed; NULL: it does so itself
    cdef char *target
    cdef size_t size
    cdef Py_ssize_t count  # of bytes that were received to target
    cdef public object about  # what reports say of it
    cdef public object call  # what it is to do; None once it does
    cdef public object tasks  # those of its server


cdef class Scheduler(Waiter):
    cdef object __weakref__
    cdef readonly unsigned long thread
    cdef object exit_class  # GreenletExit
    cdef int poller
    cdef int bell  # eventfd(2)
    cdef _sys.epoll_event *events
    cdef int event_next
    cdef int event_count
    cdef readonly Task main
    cdef readonly Task current
    cdef Task head
    cdef Task tail
    cdef size_t ready
    cdef size_t quota  # of those that are ready, how many are resumed before the next poll
    cdef object starting  # tasks that have not begun
    cdef Timers timers
    cdef bint polling  # main waits for descriptors
    cdef bint fired  # one of them may be ready
    cdef bint interrupted  # by a signal
    cdef nanoseconds until
    cdef nanoseconds polled_at  # 0: what was due then has been told
    cdef nanoseconds resumed_at
    cdef nanoseconds threshold
    cdef object report
    cdef object refuses
    cdef object greenlet_class
    cdef size_t taken  # bytes received since it was resumed
    cdef size_t given  # and sent
    cdef unsigned int receives
    cdef readonly unsigned long long switches
    cdef readonly bint asleep  # in epoll_wait(2)
    cdef public bint active  # a loop runs on it
    cdef public Py_ssize_t alive  # how many tasks have been started and have not ended

    cpdef int ring(self) except -1
    cdef int settle_all(self) except -1
    cdef Task happened(self, unsigned int place, unsigned int generation, unsigned int events)

    cdef int open(self) except -1
    cdef int interrupted_wait(self, Task task) except -1
    cdef int end(self, Task task) except -1
    cdef int resume(self, Task task) except -1
    cdef int account(self, Task task) except -1
    cdef int pass_on(self, Task task) except -1
    cdef int suspend(self, Task task, nanoseconds deadline) except -1
    cdef Task next_task(self)
    cdef Task event(self, _sys.epoll_event *event)
    cdef int poll(self) except -1
    cdef void enqueue(self, Task task) noexcept
    cdef Task dequeue(self)
    cpdef int wake_with(self, Task task, int outcome) except -1
    cdef int give_way(self) except -1
    cdef int expire(self, nanoseconds now) except -1
    cdef int expire_polled(self) except -1
    cdef int unlink(self, Task task) except -1
