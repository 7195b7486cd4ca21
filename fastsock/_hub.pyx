"""The hub: a scheduler whose tasks wait for descriptors, their own connections first of all.

Two buffers are shared. What comes for a task that waits is received into ``incoming`` before the
task is resumed, and is its own until somebody else needs the buffer; then it takes out what is left
(``Borrower.give_back``). So a connection that is silent has no buffer. Small writes gather in
``outgoing``, those of one connection at a time, and leave before the task that wrote them is
suspended.

Descriptors of connections are in the epoll(7) edge-triggered: of what was not taken there is no
further event, so a slot remembers that it is readable until a receive has brought less than was
asked for. After the peer's FIN that means nothing: it may have come in one edge with data. An event
carries place and generation of its slot, never a number that may be somebody else's by now.

Threads: see ``_tasks``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from fastsock cimport _sys
from fastsock._channel cimport Borrower, Channel, channel_of, fail
from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._tasks cimport (
    CLOSED,
    DONE,
    READY,
    TIMED_OUT,
    WAITING,
    Scheduler,
    Task,
    deadline_after,
)

cdef enum:
    INCOMING = 1 << 16
    OUTGOING = 1 << 16
    # Writes of this many bytes and more are sent from where they are.
    DIRECT = 1 << 12
    # A task that never has to wait gives way after so many bytes, or receives.
    MOST_BYTES = 1 << 16
    MOST_RECEIVES = 64
    # So often main runs signal handlers, which may have missed its wait.
    SIGNALS = 500 * MILLISECOND


cdef class Slot:
    """A descriptor in a hub's epoll."""

    def __cinit__(self):
        self.descriptor = self.copy = -1

    def __dealloc__(self):
        if self.hub is not None:
            self.hub.release_slot(self)

    def release(self):
        """Its descriptor is about to be closed or given away; who waits is woken. Any thread's."""
        self.hub.give_up(self)


cdef class Hub(Scheduler):
    """One thread's; see ``Scheduler``."""

    def __init__(self, main, exit_class, report):
        Scheduler.__init__(self, main, exit_class, report)
        self.incoming = <char *> malloc(INCOMING)
        self.outgoing = <char *> malloc(OUTGOING)
        if self.incoming == NULL or self.outgoing == NULL:
            raise MemoryError
        self.free_places = []
        self.foreign = {}

    def __dealloc__(self):
        free(self.incoming)
        free(self.outgoing)
        free(self.table)
        free(self.generations)

    def adopt(self, connection):
        """Have a connection wait here."""
        channel_of(connection).waiter = self

    def abandon(self):
        self.held = 0  # the parent sends it
        self.sender = self.sending = None
        Scheduler.abandon(self)

    cdef Task happened(self, unsigned int place, unsigned int generation, unsigned int events):
        cdef Slot slot
        cdef Task task
        cdef Py_ssize_t count
        if (place >= self.room or self.table[place] == NULL
                or self.generations[place] != generation):
            return None  # of a descriptor that was closed since
        slot = <Slot> self.table[place]
        if slot.others is not None:
            self.wake_others(slot, events)
        if slot.foreign:
            return None
        if slot.kept:
            if events & ~(<unsigned int> _sys.EPOLLOUT):
                slot.readable = True
            if events & (_sys.EPOLLOUT | _sys.EPOLLHUP | _sys.EPOLLERR):
                slot.writable = True
            return None
        if events & (_sys.EPOLLRDHUP | _sys.EPOLLHUP | _sys.EPOLLERR):
            slot.ended = True
        if events & ~(<unsigned int> _sys.EPOLLOUT):
            slot.readable = True
        task = slot.writer
        if task is not None and events & (_sys.EPOLLOUT | _sys.EPOLLHUP | _sys.EPOLLERR):
            slot.writer = None
            self.wake_with(task, READY)
        task = slot.reader
        if task is None or not slot.readable:
            return None
        if task.target == NULL:
            slot.reader = None
            self.wake_with(task, READY)
            return None
        if task.target == self.incoming and self.borrower is not None:
            self.borrower.give_back()
            self.borrower = None
        count = _sys.recv(slot.descriptor, task.target, task.size, _sys.MSG_DONTWAIT)
        task.error = 0
        if count < 0:
            task.error = _sys.errno
            if task.error == _sys.EAGAIN:
                slot.readable = False
                return None
            if task.error == _sys.EINTR:
                self.event_next -= 1
                return None
            count = 0
        elif <size_t> count < task.size and not slot.ended:
            slot.readable = False
        task.count = count
        slot.reader = None
        task.outcome = DONE
        return task

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

    # Descriptors

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

    cdef Slot enrol(self, Channel channel, int descriptor):
        """The slot of a channel's descriptor."""
        cdef Slot slot = channel.slot
        if slot is not None:
            if slot.descriptor == descriptor:
                return slot
            self.forget(channel)
        if descriptor < 0:
            fail(_sys.EBADF)
        slot = self.slot_or_copy(descriptor, _sys.EPOLLIN | _sys.EPOLLOUT | _sys.EPOLLRDHUP
                                 | _sys.EPOLLPRI | <unsigned int> _sys.EPOLLET)
        channel.slot = slot
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

    cdef int forget(self, Channel channel) except -1:
        """For any thread."""
        cdef Slot slot = channel.slot
        cdef Task task
        if self.sender is channel:
            if self.held:
                _sys.send(channel.descriptor, self.outgoing, self.held,
                          _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            self.held = 0
            self.sender = self.sending = None
        if slot is None:
            return 0
        channel.slot = None
        self.release_slot(slot)
        waiting = slot.others or []
        waiting += [slot.reader, slot.writer]
        slot.reader = slot.writer = slot.others = None
        for task in waiting:
            if task is not None:
                self.wake_with(task, CLOSED)
        return 0

    # Waiting

    cdef int wait_for(self, Slot slot, bint writing, nanoseconds deadline) except -1:
        """Suspend the current task until something happens to a connection's descriptor."""
        cdef Task task = self.current
        task.slot = slot
        if writing and slot.writer is None:
            slot.writer = task
        elif not writing and slot.reader is None:
            slot.reader = task
        else:
            task.target = NULL
            task.wants = _sys.POLLIN | _sys.POLLOUT
            if slot.others is None:
                slot.others = []
            slot.others.append(task)
        self.suspend(task, deadline)
        if task.outcome == TIMED_OUT:
            raise TimeoutError("timed out")
        if task.outcome == CLOSED:
            fail(_sys.EBADF)
        return task.outcome

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

    def wait_for_descriptor(self, int descriptor, bint read, bint write, seconds):
        """Suspend the current task until a descriptor is ready; false after so many seconds.

        Raises OSError (EBADF): it is none, or ``forget_descriptor()`` was called.
        """
        cdef Task task = self.current
        cdef nanoseconds deadline = NEVER
        cdef Slot slot
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.settle_all()
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

    def wait_in_main(self, int descriptor, bint read, bint write, seconds):
        """As ``wait_for_descriptor()``, of main: the tasks go on. Signal handlers run meanwhile."""
        cdef Task task = self.main
        cdef int outcome
        cdef nanoseconds now = monotonic()
        cdef nanoseconds deadline = NEVER
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.account(task)
        while True:
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
            self.set_timer(task)
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

    def take_turn(self, size_t count):
        """Of a task, before it receives or sends so many bytes: after its share others run."""
        if self.taken >= MOST_BYTES or self.receives >= MOST_RECEIVES:
            self.give_way()
        self.taken += count
        self.receives += 1

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

    cdef int await_ready(self, Channel channel, object connection, bint writing) except -1:
        """Wait until a receive or a send would probably not; for calls that aren't ours."""
        cdef nanoseconds limit
        cdef int descriptor
        cdef _sys.pollfd asked
        self.settle_all()
        descriptor = channel.current(connection, &limit)
        if limit == 0 or descriptor < 0:
            return 0
        asked.fd = descriptor
        asked.events = _sys.POLLOUT if writing else _sys.POLLIN
        asked.revents = 0
        if _sys.poll(&asked, 1, 0) != 0:
            return 0
        seconds = None if limit == NEVER else limit / 1e9
        if not self.wait_for_descriptor(descriptor, not writing, writing, seconds):
            raise TimeoutError("timed out")
        return 0

    # Receiving

    cdef Py_ssize_t receive(self, Channel channel, object connection, char *into, size_t size,
                            int flags) except -1:
        return self.receive_some(channel, connection, into, size, flags)

    cdef Py_ssize_t receive_shared(self, Channel channel, object connection, size_t size,
                                   Borrower borrower, char **data) except -1:
        cdef Py_ssize_t count
        count = self.receive_some(channel, connection, self.incoming,
                                  min(size, <size_t> INCOMING), 0)
        data[0] = self.incoming
        self.borrower = borrower
        return count

    cdef Py_ssize_t receive_some(self, Channel channel, object connection, char *into, size_t size,
                                 int flags) except -1:
        cdef nanoseconds limit, deadline = 0
        cdef int descriptor, error
        cdef Py_ssize_t count
        cdef Slot slot
        cdef Task task
        if self.taken >= MOST_BYTES or self.receives >= MOST_RECEIVES:
            self.give_way()
        descriptor = channel.current(connection, &limit)
        while True:
            slot = channel.slot
            if slot is None or slot.readable or limit == 0:
                if into == self.incoming and self.borrower is not None:
                    self.borrower.give_back()
                    self.borrower = None
                count = _sys.recv(descriptor, into, size, flags | _sys.MSG_DONTWAIT)
                if count >= 0:
                    if (slot is not None and <size_t> count < size and not slot.ended
                            and flags == 0):
                        slot.readable = False
                    self.taken += <size_t> count
                    self.receives += 1
                    return count
                error = _sys.errno
                if error == _sys.EINTR:
                    PyErr_CheckSignals()
                    descriptor = channel.current(connection, &limit)
                    continue
                if error != _sys.EAGAIN or limit == 0:
                    fail(error)
                if slot is not None:
                    slot.readable = False
            if deadline == 0:
                deadline = NEVER if limit == NEVER else monotonic() + limit
            if self.held:
                self.flush()
                descriptor = channel.current(connection, &limit)
            if channel.failed is not None:
                self.raise_failed(channel)
            slot = self.enrol(channel, descriptor)
            if slot.readable:
                continue
            task = self.current
            task.target = into if flags == 0 else NULL
            task.size = size
            if self.wait_for(slot, False, deadline) == DONE:
                if task.error:
                    fail(task.error)
                self.taken += <size_t> task.count
                self.receives += 1
                return task.count
            descriptor = channel.current(connection, &limit)

    # Sending

    cdef Py_ssize_t send(self, Channel channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1:
        cdef nanoseconds limit
        if channel.failed is not None:
            self.raise_failed(channel)
        if size < DIRECT and flags == 0:
            if self.sender is not channel or self.held + size > OUTGOING:
                if self.held:
                    self.flush()
                if channel.failed is not None:
                    self.raise_failed(channel)
                if channel.current(connection, &limit) < 0 or limit == 0:
                    return self.send_all(channel, connection, data, size, flags, all_of_it)
                self.sender = channel
                self.sending = connection
            memcpy(self.outgoing + self.held, data, size)
            self.held += size
            return size
        if self.held:
            self.flush()
            if channel.failed is not None:
                self.raise_failed(channel)
        return self.send_all(channel, connection, data, size, flags, all_of_it)

    cdef int settle_all(self) except -1:
        if self.held:
            self.flush()
        return 0

    cdef int settle(self, Channel channel, object connection) except -1:
        if self.held and self.sender is channel:
            self.flush()
        if channel.failed is not None:
            self.raise_failed(channel)
        return 0

    cdef int flush(self) except -1:
        """Send what is held back; the current task waits until all of it is taken.

        What that fails with is raised by the next call on that connection: this may be one on
        another, or on none.
        """
        cdef Channel channel = self.sender
        try:
            self.send_held(channel)
        except OSError as error:
            channel.failed = error
        return 0

    cdef int send_held(self, Channel channel) except -1:
        cdef object connection = self.sending
        cdef size_t held = self.held
        cdef nanoseconds limit
        cdef int descriptor, error
        cdef Py_ssize_t count
        cdef Slot slot = channel.slot
        self.held = 0
        descriptor = channel.current(connection, &limit)
        if slot is None or slot.sender is None:
            count = _sys.send(descriptor, self.outgoing, held,
                              _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            if <size_t> count == held:
                return 0
            error = _sys.errno
        else:  # another task is in the middle of a longer one
            count = -1
            error = _sys.EAGAIN
        self.sender = self.sending = None
        if count < 0:
            count = 0
            if error != _sys.EAGAIN and error != _sys.EINTR:
                fail(error)
        if self.current.doomed:
            return 0  # it is not to wait for a peer that does not read
        rest = PyBytes_FromStringAndSize(self.outgoing + count, held - count)
        self.send_all(channel, connection, PyBytes_AS_STRING(rest), held - count, 0, True)
        return 0

    cdef int raise_failed(self, Channel channel) except -1:
        error, channel.failed = channel.failed, None
        raise error

    cdef Py_ssize_t send_all(self, Channel channel, object connection, const char *data,
                             size_t size, int flags, bint all_of_it) except -1:
        cdef nanoseconds limit, deadline = 0
        cdef int descriptor = channel.current(connection, &limit)
        cdef int error
        cdef size_t sent = 0
        cdef Py_ssize_t count
        cdef Slot slot = channel.slot
        cdef Slot mine = None
        if slot is not None and slot.sender is not None and limit != 0:
            deadline = NEVER if limit == NEVER else monotonic() + limit
            while slot.sender is not None:  # which is in the middle of its own
                self.queue_for(slot, deadline)
            descriptor = channel.current(connection, &limit)
        try:
            while True:
                count = _sys.send(descriptor, data + sent, size - sent,
                                  flags | _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
                if count >= 0:
                    sent += <size_t> count
                    if sent >= size or (not all_of_it and limit != NEVER):
                        return sent
                    continue
                error = _sys.errno
                if error == _sys.EINTR:
                    PyErr_CheckSignals()
                    descriptor = channel.current(connection, &limit)
                    continue
                if error != _sys.EAGAIN or limit == 0:
                    if sent and not all_of_it:
                        return sent
                    fail(error)
                if deadline == 0:
                    deadline = NEVER if limit == NEVER else monotonic() + limit
                slot = self.enrol(channel, descriptor)
                slot.sender = self.current
                mine = slot
                self.wait_for(slot, True, deadline)
                descriptor = channel.current(connection, &limit)
        finally:
            if mine is not None:
                mine.sender = None
                if mine.others is not None:
                    self.wake_others(mine, _sys.EPOLLOUT)

    cdef int queue_for(self, Slot slot, nanoseconds deadline) except -1:
        """Wait until another task has sent its bytes, or longer."""
        cdef Task task = self.current
        task.slot = slot
        task.target = NULL
        task.wants = _sys.POLLOUT
        if slot.others is None:
            slot.others = []
        slot.others.append(task)
        self.suspend(task, deadline)
        if task.outcome == TIMED_OUT:
            raise TimeoutError("timed out")
        if task.outcome == CLOSED:
            fail(_sys.EBADF)
        return 0
