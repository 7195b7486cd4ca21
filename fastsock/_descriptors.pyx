"""Descriptors in a scheduler's epoll, and tasks that wait for those that are no connections'.

An event carries place and generation of its slot, never a number that may be somebody else's by
now. Who waits besides the one reader and the one writer that a connection has is on a list.

A slot is a connection's (see ``_hub``), or foreign: entered when the first task waits for it and
released when the last one has waited, with one event at a time (EPOLLONESHOT); or kept: of somebody
who tells when it is closed, edge-triggered.

Threads: see ``_tasks``.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._main_greenlet cimport MainScheduler
from fastsock._tasks cimport CLOSED, READY, TIMED_OUT, WAITING, Task, deadline_after
from fastsock._visitors cimport Copy
from fastsock._waiter cimport fail

cdef enum:
    # So often main runs signal handlers, which may have missed its wait.
    SIGNALS = 500 * MILLISECOND


cdef int check(Copy copy) except -1:
    """As ``forget_descriptor()`` tells who waits already."""
    if copy is not None and copy.given_up:
        fail(_sys.EBADF)
    return 0


@cython.no_gc_clear  # it takes itself out of the hub's table, also when the collector drops it
cdef class Slot:
    """A descriptor in a hub's epoll."""

    def __cinit__(self):
        self.descriptor = self.copy = -1

    cdef Py_ssize_t receive(self, int descriptor, char *into, size_t size, int flags) noexcept:
        """recv(2) that does not wait, and notes whether there may be more."""
        cdef _sys.iovec part
        cdef _sys.msghdr message
        cdef Py_ssize_t count
        cdef bint whole = True  # it stopped because there was no more
        flags |= _sys.MSG_DONTWAIT
        if self.messages != UNIX:
            count = _sys.recv(descriptor, into, size, flags)
        else:
            # Bytes that came with descriptors, or with other credentials than those before, are
            # where a receive stops; then there is something that does not fit in no room.
            memset(&message, 0, sizeof(message))
            part.iov_base = into
            part.iov_len = size
            message.msg_iov = &part
            message.msg_iovlen = 1
            count = _sys.recvmsg(descriptor, &message, flags)
            whole = not message.msg_flags & _sys.MSG_CTRUNC
        if (0 <= count < <Py_ssize_t> size and whole and flags == _sys.MSG_DONTWAIT
                and self.messages != SEPARATE and not self.ended and not self.marked):
            self.readable = False
        return count

    def __dealloc__(self):
        if self.hub is not None:
            self.hub.release_slot(self)

    def release(self):
        """Its descriptor is about to be closed or given away; who waits is woken. Any thread's."""
        self.hub.give_up(self)


cdef class Descriptors(MainScheduler):
    """A scheduler whose tasks wait for descriptors."""

    def __init__(self, *arguments):
        MainScheduler.__init__(self, *arguments)
        self.free_places = []
        self.foreign = {}

    def __dealloc__(self):
        free(self.table)
        free(self.generations)

    def abandon(self, list tasks):
        cdef unsigned int place
        cdef Slot slot
        for place in range(self.room):
            if self.table[place] != NULL:
                slot = <Slot> self.table[place]
                # The epoll is the parent's too: nothing is taken out of it here.
                if slot.copy >= 0:
                    _sys.close(slot.copy)
                slot.descriptor = slot.copy = -1
                self.table[place] = NULL
                self.generations[place] += 1
                self.free_places.append(place)
        self.foreign.clear()
        MainScheduler.abandon(self, tasks)

    cdef Slot slot_of_event(self, unsigned int place, unsigned int generation):
        """Whose event it is; None: of a descriptor that was closed since."""
        if (place >= self.room or self.table[place] == NULL
                or self.generations[place] != generation):
            return None
        return <Slot> self.table[place]

    cdef int happened_elsewhere(self, Slot slot, unsigned int events) except -1:
        """An event of a slot that is no connection's; those that wait were woken."""
        if slot.kept:
            if events & ~(<unsigned int> _sys.EPOLLOUT):
                slot.readable = True
            if events & (_sys.EPOLLOUT | _sys.EPOLLHUP | _sys.EPOLLERR):
                slot.writable = True
        return 0

    cdef int unlink(self, Task task) except -1:
        cdef Slot slot = task.slot
        task.slot = None
        if slot is not None:
            if slot.reader is task:
                slot.reader = None
            elif slot.writer is task:
                slot.writer = None
            elif slot.others is not None and task in slot.others:
                slot.others.remove(task)
        return 0

    # Slots

    cdef Slot new_slot(self, int descriptor, unsigned int events):
        """Raises OSError of epoll_ctl(2)."""
        cdef _sys.epoll_event event
        cdef unsigned int place, room
        cdef void *table
        cdef Slot slot
        if not self.free_places:
            room = max(64, 2 * self.room)
            table = realloc(self.table, room * sizeof(void *))
            if table == NULL:
                raise MemoryError
            self.table = <void **> table
            table = realloc(self.generations, room * sizeof(unsigned int))
            if table == NULL:
                raise MemoryError
            self.generations = <unsigned int *> table
            for place in range(self.room, room):
                self.table[place] = NULL
                self.generations[place] = 0
                self.free_places.append(place)
            self.room = room
        place = self.free_places.pop()
        event.events = events
        event.data.u64 = (<unsigned long long> self.generations[place] << 32) | place
        if _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_ADD, descriptor, &event) < 0:
            self.free_places.append(place)
            fail(_sys.errno)
        slot = Slot.__new__(Slot)
        slot.hub = self
        slot.place = place
        slot.descriptor = descriptor
        self.table[place] = <void *> slot
        return slot

    cdef Slot slot_or_copy(self, int descriptor, unsigned int events):
        """A new slot; if the descriptor is in the epoll already, of a duplicate of it."""
        cdef Slot slot
        cdef int copy
        try:
            return self.new_slot(descriptor, events)
        except FileExistsError:
            copy = _sys.fcntl(descriptor, _sys.F_DUPFD_CLOEXEC, 0)
            if copy < 0:
                fail(_sys.errno)
        try:
            slot = self.new_slot(copy, events)
        except BaseException:
            _sys.close(copy)
            raise
        slot.copy = copy
        slot.descriptor = descriptor
        return slot

    cdef void release_slot(self, Slot slot) noexcept:
        if slot.descriptor < 0:
            return
        # Explicitly: a duplicate, in another process perhaps, would keep it in the epoll.
        if slot.copy >= 0:
            _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_DEL, slot.copy, NULL)
            _sys.close(slot.copy)
        else:
            _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_DEL, slot.descriptor, NULL)
        slot.descriptor = slot.copy = -1
        self.table[slot.place] = NULL
        self.generations[slot.place] += 1
        if self.free_places is not None:
            self.free_places.append(slot.place)

    # Waiting

    cdef int wake_others(self, Slot slot, unsigned int events) except -1:
        cdef Task task
        cdef list still = []
        cdef short happened = 0
        if events & ~(<unsigned int> _sys.EPOLLOUT):
            happened |= _sys.POLLIN
        if events & (_sys.EPOLLOUT | _sys.EPOLLHUP | _sys.EPOLLERR):
            happened |= _sys.POLLOUT
        for task in slot.others:
            if task.wants & happened:
                self.wake_with(task, READY)
            else:
                still.append(task)
        slot.others = still or None
        if slot.foreign and still:
            self.rearm(slot)
        return 0

    def wait_for_descriptor(self, int descriptor, bint read, bint write, seconds, Copy copy=None):
        """Suspend the current task until a descriptor is ready; false after so many seconds.

        copy: what the descriptor is of. Raises OSError (EBADF): it is none, or the copy is given
        up, or ``forget_descriptor()`` was called.
        """
        cdef Task task = self.current
        cdef nanoseconds deadline = NEVER
        cdef Slot slot
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.settle_all()
        check(copy)
        slot = self.watch(task, descriptor, read, write)
        if slot is None:
            return True
        try:
            self.rearm(slot)
            self.suspend(task, deadline)
        finally:
            self.unlink_from(task, slot)
        if task.outcome == CLOSED:
            fail(_sys.EBADF)
        return task.outcome != TIMED_OUT

    def wait_in_main(self, int descriptor, bint read, bint write, seconds, Copy copy=None):
        """As ``wait_for_descriptor()``, of main: the tasks go on. Signal handlers run meanwhile."""
        cdef Task task = self.main
        cdef int outcome
        cdef nanoseconds now = monotonic()
        cdef nanoseconds deadline = NEVER
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.account(task)
        while True:
            check(copy)
            outcome = self.wait_a_while(task, descriptor, read, write,
                                        sooner(deadline, now + SIGNALS))
            if outcome == CLOSED:
                fail(_sys.EBADF)
            if outcome == READY:
                return True
            now = monotonic()
            if deadline != NEVER and now >= deadline:
                return False
            PyErr_CheckSignals()  # whose handlers may wait here themselves

    cdef int wait_a_while(self, Task task, int descriptor, bint read, bint write,
                          nanoseconds deadline) except -1:
        """Until the descriptor is ready, or a signal has come (WAITING)."""
        cdef int outcome
        cdef Slot slot = self.watch(task, descriptor, read, write)
        if slot is None:
            return READY
        task.outcome = WAITING
        task.deadline = deadline
        self.fired = self.interrupted = False
        try:
            self.rearm(slot)
            self.timers.set(task)
            while task.outcome == WAITING and not self.interrupted:
                self.step()
        finally:
            outcome = task.outcome
            task.outcome = READY
            task.deadline = NEVER
            self.unlink_from(task, slot)
        return outcome

    def forget_descriptor(self, int descriptor):
        """It is about to be closed or given away: who waits for it is woken. For any thread.

        A connection's does not need it.
        """
        cdef Slot slot = self.foreign.pop(descriptor, None)
        if slot is not None:
            self.give_up(slot)

    cdef int give_up(self, Slot slot) except -1:
        cdef Task task
        self.release_slot(slot)
        waiting, slot.others = slot.others or [], None
        for task in waiting:
            self.wake_with(task, CLOSED)
        return 0

    def keep(self, int descriptor):
        """A slot for a descriptor of somebody who tells when that is closed; None: it has one."""
        cdef Slot slot
        try:
            slot = self.new_slot(descriptor, _sys.EPOLLIN | _sys.EPOLLOUT | _sys.EPOLLRDHUP
                                 | <unsigned int> _sys.EPOLLET)
        except FileExistsError:
            return None
        slot.kept = True
        return slot

    def wait_at(self, Slot slot not None, bint read, bint write, seconds):
        """As ``wait_for_descriptor()``, for a slot that was kept, without a system call.

        Only right after a call for the descriptor has failed with EAGAIN: of what is there already
        there may be no further event. May return true too early.
        """
        cdef Task task = self.current
        cdef nanoseconds deadline = NEVER
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.settle_all()  # it may be suspended for that, and the event come meanwhile
        if slot.descriptor < 0:
            fail(_sys.EBADF)
        if not ((read and slot.readable) or (write and slot.writable)):
            task.slot = slot
            task.wants = (_sys.POLLIN if read else 0) | (_sys.POLLOUT if write else 0)
            if slot.others is None:
                slot.others = []
            slot.others.append(task)
            self.suspend(task, deadline)
            if task.outcome == CLOSED:
                fail(_sys.EBADF)
            if task.outcome == TIMED_OUT:
                return False
        if read:
            slot.readable = False
        if write:
            slot.writable = False
        return True

    @property
    def foreign_waits(self):
        """How many descriptors are waited for that are no connections'."""
        return len(self.foreign)

    cdef Slot watch(self, Task task, int descriptor, bint read, bint write):
        """Enter a task that is to wait for a foreign descriptor; None: that is always ready."""
        cdef Slot slot = self.foreign.get(descriptor)
        if slot is None:
            try:
                slot = self.foreign_slot(descriptor)
            except PermissionError:
                return None  # EPERM: a regular file
            self.foreign[descriptor] = slot
        task.slot = slot
        task.wants = (_sys.POLLIN if read else 0) | (_sys.POLLOUT if write else 0)
        if slot.others is None:
            slot.others = []
        slot.others.append(task)
        return slot

    cdef Slot foreign_slot(self, int descriptor):
        cdef Slot slot = self.slot_or_copy(descriptor, _sys.EPOLLONESHOT)
        slot.foreign = True
        return slot

    cdef int unlink_from(self, Task task, Slot slot) except -1:
        """A wait for a foreign descriptor is over; the last one takes the slot with it."""
        task.slot = None
        if slot.others is not None and task in slot.others:
            slot.others.remove(task)
        if not slot.others and self.foreign.get(slot.descriptor) is slot:
            del self.foreign[slot.descriptor]
            self.release_slot(slot)
        return 0

    cdef int rearm(self, Slot slot) except -1:
        cdef _sys.epoll_event event
        cdef Task task
        cdef int descriptor = slot.descriptor if slot.copy < 0 else slot.copy
        event.events = _sys.EPOLLONESHOT
        for task in slot.others:
            if task.wants & _sys.POLLIN:
                event.events |= _sys.EPOLLIN | _sys.EPOLLRDHUP
            if task.wants & _sys.POLLOUT:
                event.events |= _sys.EPOLLOUT
        event.data.u64 = (<unsigned long long> self.generations[slot.place] << 32) | slot.place
        if _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_MOD, descriptor, &event) < 0:
            fail(_sys.errno)
        return 0
