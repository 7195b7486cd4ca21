"""The hub: a scheduler whose tasks wait for their connections, in which bytes come and go.

Two buffers are shared. What comes for a task that waits is received into ``incoming`` before the
task is resumed, and is its own until somebody else needs the buffer; then it takes out what is left
(``Borrower.give_back``). So a connection that is silent has no buffer. Small writes gather in
``outgoing``, those of one connection at a time, and leave before the task that wrote them is
suspended.

Descriptors of connections are in the epoll(7) edge-triggered: of what was not taken there is no
further event, so a slot remembers that it is readable until a receive has brought less than was
asked for. After the peer's FIN that means nothing: it may have come in one edge with data.

Threads: see ``_tasks``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from fastsock cimport _sys
from fastsock._channel cimport channel_of
from fastsock._clock cimport NEVER, deadline_of, monotonic, nanoseconds, sooner
from fastsock._descriptors cimport NONE, UNIX, Descriptors, Slot
from fastsock._ledger cimport IDLE, READING, WORKING, WRITING
from fastsock._tasks cimport CLOSED, DONE, READY, TIMED_OUT, Task
from fastsock._waiter cimport (
    BUSY,
    FREE,
    FULL,
    NOTHING,
    OVERDUE,
    Borrower,
    Endpoint,
    Way,
    fail,
)

cdef enum:
    INCOMING = 1 << 16
    OUTGOING = 1 << 16
    # Writes of this many bytes and more are sent from where they are.
    DIRECT = 1 << 12
    # A task that never has to wait gives way after so many bytes, or receives.
    MOST_BYTES = 1 << 16
    MOST_RECEIVES = 64
    FAILED = -1


# A task that waits keeps a copy of the C stack: a try statement would take 100 bytes more of it.
ctypedef int (*Unchecked)(Hub hub, Slot slot, nanoseconds deadline) noexcept


cdef int _wait_at_slot(Hub hub, Slot slot, nanoseconds deadline) except FAILED:
    return hub.wait_at_slot(slot, False, deadline)


cdef int _raise() except FAILED:
    """Go on with the exception that is set."""
    return FAILED


cdef class Hub(Descriptors):
    """One thread's; see ``Scheduler``."""

    def __init__(self, *arguments):
        Descriptors.__init__(self, *arguments)
        self.incoming = <char *> malloc(INCOMING)
        self.outgoing = <char *> malloc(OUTGOING)
        if self.incoming == NULL or self.outgoing == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.incoming)
        free(self.outgoing)

    def adopt(self, connection):
        """Have a connection wait here."""
        channel_of(connection).waiter = self

    def abandon(self, list tasks):
        self.held = 0  # the parent sends it
        self.sender = self.sending = None
        Descriptors.abandon(self, tasks)

    def settle_before_fork(self):
        """Send what is held back: the child may write to the same connection."""
        if self.here():
            self.settle_all()

    def ended(self, task):
        Descriptors.ended(self, task)
        # Neither is to keep a connection open that nobody else refers to.
        if self.borrower is not None:
            self.borrower.give_back()
            self.borrower = None
        if not self.held:
            self.sender = self.sending = None

    cdef Task happened(self, unsigned int place, unsigned int generation, unsigned int events):
        cdef Slot slot = self.slot_of_event(place, generation)
        cdef Task task
        cdef Py_ssize_t count
        if slot is None:
            return None
        if slot.others is not None:
            self.wake_others(slot, events)
        if slot.foreign or slot.kept:
            self.happened_elsewhere(slot, events)
            return None
        if events & (_sys.EPOLLRDHUP | _sys.EPOLLHUP | _sys.EPOLLERR | _sys.EPOLLPRI):
            slot.doubtful = True
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
        count = slot.receive(slot.descriptor, task.target, task.size, 0)
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
        task.count = count
        slot.reader = None
        task.outcome = DONE
        return task

    def take_turn(self, size_t count):
        """Of a task, before it receives or sends so many bytes: after its share others run."""
        if self.taken >= MOST_BYTES or self.receives >= MOST_RECEIVES:
            self.give_way()
        self.taken += count
        self.receives += 1

    # Descriptors

    cdef Slot enrol(self, Endpoint channel, int descriptor):
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
        if channel.kind == _sys.SOCK_STREAM:
            if channel.family == _sys.AF_UNIX:
                slot.messages = UNIX
            elif channel.family == _sys.AF_INET or channel.family == _sys.AF_INET6:
                slot.messages = NONE
        channel.slot = slot
        return slot

    cdef int forget(self, Endpoint channel) except -1:
        """For any thread."""
        cdef Slot slot = channel.slot
        cdef Task task
        cdef nanoseconds limit
        if self.sender is channel:
            if self.held:  # by a task; it is another thread that closes
                _sys.send(channel.current(self.sending, &limit), self.outgoing, self.held,
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
        """As wait_at_slot(); raises TimeoutError after the deadline."""
        if self.wait_at_slot(slot, writing, deadline) == TIMED_OUT:
            raise TimeoutError("timed out")
        return 0

    cdef int wait_at_slot(self, Slot slot, bint writing, nanoseconds deadline) except -1:
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
        if task.outcome == CLOSED:
            fail(_sys.EBADF)
        return task.outcome

    cdef int await_ready(self, Endpoint channel, object connection, bint writing,
                         nanoseconds deadline) except -1:
        cdef nanoseconds limit
        cdef _sys.pollfd asked
        cdef Slot slot
        # What poll(2) says may be wrong each time.
        if deadline != NEVER and monotonic() > deadline:
            raise TimeoutError("timed out")
        self.take_turn(1)
        self.settle_all()
        while True:
            # Anew after a wait: it may have been closed since, and its number be somebody else's.
            asked.fd = channel.current(connection, &limit)
            if limit == 0 or asked.fd < 0:
                return 0
            # Enrolled first: what happens between this question and the wait is an event then.
            slot = self.enrol(channel, asked.fd)
            asked.events = _sys.POLLOUT if writing else _sys.POLLIN
            asked.revents = 0
            if _sys.poll(&asked, 1, 0) != 0:
                return 0
            self.current.target = NULL
            self.wait_for(slot, writing, deadline)

    # Receiving

    cdef Py_ssize_t receive(self, Endpoint channel, object connection, char *into, size_t size,
                            int flags) except -1:
        cdef nanoseconds limit
        cdef Py_ssize_t count, received = 0
        if not flags & _sys.MSG_WAITALL:
            return self.receive_some(channel, connection, into, size, flags)
        # MSG_DONTWAIT undoes it, and a timeout does, which is a non-blocking descriptor's.
        flags &= ~_sys.MSG_WAITALL
        channel.current(connection, &limit)
        if limit != NEVER or flags & _sys.MSG_PEEK or channel.kind == _sys.SOCK_SEQPACKET:
            return self.receive_some(channel, connection, into, size, flags)
        while received < <Py_ssize_t> size:
            try:
                count = self.receive_some(channel, connection, into + received, size - received,
                                          flags)
            except OSError:
                if received == 0:
                    raise
                break  # the next call meets it, if it lasts
            if count == 0:
                break
            received += count
        return received

    cdef Py_ssize_t receive_some(self, Endpoint channel, object connection, char *into, size_t size,
                                 int flags) except -1:
        cdef Py_ssize_t count
        count = self.receive_or_borrow(channel, connection, into, size, flags, None)
        if count == OVERDUE:
            channel.overdue(False, 0)
        if count == NOTHING:
            fail(_sys.EAGAIN)
        return count

    cdef char *lent(self) noexcept:
        return self.incoming

    cdef Py_ssize_t receive_or_borrow(self, Endpoint channel, object connection, char *into,
                                      size_t size, int flags, Borrower borrower) except -1:
        cdef nanoseconds limit, own = NEVER, deadline = 0
        cdef int descriptor, error, outcome
        cdef Py_ssize_t count
        cdef Slot slot
        cdef Task task
        if channel.deadlines is not None and channel.is_whole_over():
            return OVERDUE
        if self.taken >= MOST_BYTES or self.receives >= MOST_RECEIVES:
            self.give_way()
        if into == NULL:
            into = self.incoming
            size = min(size, <size_t> INCOMING)
        if channel.handed_over:
            descriptor = channel.current(connection, &limit)
        else:
            descriptor = channel.descriptor
            limit = channel.limit
        while True:
            slot = channel.slot
            if slot is None or slot.readable or limit == 0:
                if into == self.incoming and self.borrower is not None:
                    self.borrower.give_back()
                    self.borrower = None
                if slot is None:
                    count = _sys.recv(descriptor, into, size, flags | _sys.MSG_DONTWAIT)
                else:
                    count = slot.receive(descriptor, into, size, flags)
                if count >= 0:
                    break
                error = _sys.errno
                if error == _sys.EINTR:
                    PyErr_CheckSignals()
                    descriptor = channel.current(connection, &limit)
                    continue
                if error != _sys.EAGAIN:
                    fail(error)
                if limit == 0 or (flags & _sys.MSG_DONTWAIT and limit == NEVER):
                    return NOTHING
                if slot is not None:
                    slot.readable = False
            if self.held and self.flush():
                descriptor = channel.current(connection, &limit)
            if deadline == 0:
                own = deadline = deadline_of(limit)
                if channel.deadlines is not None:
                    deadline = sooner(own, channel.deadlines.of_receive(channel.in_message))
            if channel.failed is not None:
                self.raise_failed(channel)
            if slot is None or slot.descriptor != descriptor or descriptor < 0:
                slot = self.enrol(channel, descriptor)
            if slot.readable:
                continue
            if (channel.ledger is not None and channel.ledger.draining
                    and channel.is_between_messages(descriptor)):
                return 0
            task = self.current
            task.target = into if flags == 0 else NULL
            task.size = size
            channel.doing = READING if channel.in_message else IDLE
            outcome = (<Unchecked> _wait_at_slot)(self, slot, deadline)
            channel.doing = WORKING
            if outcome == FAILED:
                _raise()
            if outcome == DONE:
                if task.error:
                    fail(task.error)
                count = task.count
                break
            if outcome == TIMED_OUT:
                deadline = channel.put_off(own)
                if deadline == 0:
                    return OVERDUE
            descriptor = channel.current(connection, &limit)
        self.taken += <size_t> count
        self.receives += 1
        if not flags & _sys.MSG_PEEK:
            channel.came(count)
        if borrower is not None:
            self.borrower = borrower
        return count

    # Sending

    cdef bint gathers(self, Endpoint channel, const char *data, size_t size) noexcept:
        # Who holds back bytes of a connection has looked at everything else, and whatever changes
        # it sends them first.
        if (self.sender is not channel or self.held == 0 or size >= DIRECT
                or self.held + size > OUTGOING or self.given >= MOST_BYTES or not self.here()):
            return False
        memcpy(self.outgoing + self.held, data, size)
        self.held += size
        self.given += size
        channel.went(size, False, data, size)
        return True

    cdef Py_ssize_t send(self, Endpoint channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1:
        cdef nanoseconds limit = channel.limit
        if channel.failed is not None:
            self.raise_failed(channel)
        if channel.deadlines is not None:
            channel.check_whole()
        if self.given >= MOST_BYTES:
            self.give_way()
        self.given += size
        # A send() that tells how much the kernel took is below other files, which flush by it.
        if size < DIRECT and flags == 0 and all_of_it and channel.kind == _sys.SOCK_STREAM:
            if channel.handed_over:
                channel.current(connection, &limit)
            if limit != 0:
                if self.sender is not channel or self.held + size > OUTGOING:
                    if self.held:
                        self.flush()
                    if channel.failed is not None:
                        self.raise_failed(channel)
                    if channel.current(connection, &limit) < 0:
                        fail(_sys.EBADF)
                    self.sender = channel
                    self.sending = connection
                memcpy(self.outgoing + self.held, data, size)
                self.held += size
                channel.went(size, False, data, size)
                return size
        if self.held:
            self.flush()
            if channel.failed is not None:
                self.raise_failed(channel)
        cdef Py_ssize_t count
        count = self.send_all(channel, connection, data, size, flags, all_of_it)
        channel.went(count, <size_t> count == size, data, size)
        if channel.behind is not None and count == <Py_ssize_t> size:
            channel.send_behind(connection)
        return count

    cdef Way way(self, Endpoint channel) except *:
        cdef Slot slot = channel.slot
        cdef Py_ssize_t count
        if slot is not None and slot.sender is not None:
            return BUSY
        if self.held and self.sender is channel:
            count = _sys.send(channel.owned(), self.outgoing, self.held,
                              _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            if count > 0:
                self.held -= <size_t> count
                memmove(self.outgoing, self.outgoing + count, self.held)
            if self.held:
                return FULL  # or it fails: who has written it finds that out
        return FREE

    cdef object take_held(self, Endpoint channel):
        if self.sender is not channel or not self.held:
            return None
        taken = PyBytes_FromStringAndSize(self.outgoing, self.held)
        self.held = 0
        self.sender = self.sending = None
        return taken

    cdef int settle_all(self) except -1:
        if self.held:
            self.flush()
        return 0

    cdef int settle(self, Endpoint channel, object connection) except -1:
        if self.held and self.sender is channel:
            self.flush()
        if channel.failed is not None:
            self.raise_failed(channel)
        return 0

    cdef int flush(self) except -1:
        """Send what is held back; the current task waits until all of it is taken: 1 if it had to.

        What that fails with is raised by the next call on that connection: this may be one on
        another, or on none.
        """
        cdef Endpoint channel = self.sender
        cdef Slot slot = channel.slot
        cdef Py_ssize_t count = -1
        cdef int error = _sys.EAGAIN
        cdef nanoseconds limit
        cdef int descriptor = channel.descriptor
        if channel.handed_over:
            descriptor = channel.current(self.sending, &limit)
        if slot is None or slot.sender is None:  # otherwise another task is sending a longer one
            count = _sys.send(descriptor, self.outgoing, self.held,
                              _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            if <size_t> count == self.held:
                self.held = 0
                if channel.deadlines is not None:
                    channel.deadlines.taken()
                return 0
            error = _sys.errno
        try:
            self.flush_rest(channel, count, error)
        except OSError as error_of_it:
            channel.failed = error_of_it
        return 1

    cdef int flush_rest(self, Endpoint channel, Py_ssize_t count, int error) except -1:
        """Send what is held back but for count bytes of it; -1: error was found instead."""
        cdef object connection = self.sending
        cdef size_t held = self.held
        self.held = 0
        self.sender = self.sending = None
        if count < 0:
            count = 0
            if error != _sys.EAGAIN and error != _sys.EINTR:
                fail(error)
        if self.current.doomed:
            return 0  # it is not to wait for a peer that does not read
        rest = PyBytes_FromStringAndSize(self.outgoing + count, held - count)
        self.send_all(channel, connection, PyBytes_AS_STRING(rest), held - count, 0, True)
        if channel.deadlines is not None:
            channel.deadlines.taken()
        if channel.behind is not None:
            channel.send_behind(connection)
        return 0

    cdef int raise_failed(self, Endpoint channel) except -1:
        error, channel.failed = channel.failed, None
        raise error

    cdef Py_ssize_t send_all(self, Endpoint channel, object connection, const char *data,
                             size_t size, int flags, bint all_of_it) except -1:
        cdef nanoseconds limit, deadline = 0, begun = 0
        cdef int descriptor = channel.current(connection, &limit)
        cdef int error
        cdef size_t sent = 0
        cdef Py_ssize_t count
        cdef Slot slot = channel.slot
        cdef Slot mine = None
        cdef bint never_waits = limit == 0 or (limit == NEVER and flags & _sys.MSG_DONTWAIT)
        if slot is not None and slot.sender is not None and not never_waits:
            begun = channel.write_begun()
            deadline = channel.until(limit, True, begun)
            while slot.sender is not None:  # which is in the middle of its own
                try:
                    self.queue_for(slot, deadline)
                except TimeoutError:
                    channel.overdue(True, begun)
            descriptor = channel.current(connection, &limit)
        try:
            while True:
                count = _sys.send(descriptor, data + sent, size - sent,
                                  flags | _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
                if count >= 0:
                    sent += <size_t> count
                    if sent >= size or (not all_of_it and (limit != NEVER or never_waits)):
                        return sent
                    self.given += <size_t> count
                    if self.given < MOST_BYTES:
                        continue
                    slot = self.enrol(channel, descriptor)
                    slot.sender = self.current
                    mine = slot
                    self.give_way()
                    descriptor = channel.current(connection, &limit)
                    continue
                error = _sys.errno
                if error == _sys.EINTR:
                    PyErr_CheckSignals()
                    descriptor = channel.current(connection, &limit)
                    continue
                if error != _sys.EAGAIN or limit == 0 or never_waits:
                    if sent and not all_of_it:
                        return sent
                    fail(error)
                if deadline == 0:
                    begun = channel.write_begun()
                    deadline = channel.until(limit, True, begun)
                slot = self.enrol(channel, descriptor)
                slot.sender = self.current
                mine = slot
                channel.doing = WRITING
                if self.wait_at_slot(slot, True, deadline) == TIMED_OUT:
                    channel.overdue(True, begun)
                channel.doing = WORKING
                descriptor = channel.current(connection, &limit)
        finally:
            channel.doing = WORKING
            if mine is not None:
                self.sent(mine)

    cdef int begin_sending(self, Endpoint channel, object connection,
                           nanoseconds deadline) except -1:
        cdef nanoseconds limit
        cdef int descriptor
        cdef Slot slot = channel.slot
        while slot is not None and slot.sender is not None and slot.sender is not self.current:
            self.queue_for(slot, deadline)
            slot = channel.slot
        descriptor = channel.current(connection, &limit)
        if descriptor >= 0:
            slot = self.enrol(channel, descriptor)
            slot.sender = self.current
        return 0

    cdef int end_sending(self, Endpoint channel) except -1:
        cdef Slot slot = channel.slot
        if slot is not None and slot.sender is self.current:
            self.sent(slot)
        return 0

    cdef int sent(self, Slot slot) except -1:
        """The current task has sent its bytes: those that queue for that may."""
        slot.sender = None
        if slot.others is not None:
            self.wake_others(slot, _sys.EPOLLOUT)
        return 0

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
