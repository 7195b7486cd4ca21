"""The thread's own greenlet, which starts the tasks and waits for what the serve loop polls.

Threads: see ``_tasks``.
"""

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._tasks cimport LOOP, Scheduler, Task

cdef enum:
    # So often what the epoll does not take is polled.
    SLICE = 20 * MILLISECOND


cdef class MainScheduler(Scheduler):
    """A scheduler with what its main calls."""

    def start(self, Task task not None):
        """Have a task begin: as soon as main waits. For any thread."""
        self.alive += 1
        self.starting.append(task)
        self.enqueue(self.main)
        self.ring()

    def turn(self):
        """Of main: let every task that is ready run, once."""
        self.wait(NULL, 0, 0)

    def run(self, still):
        """Of main: let the tasks run, and wait with them, as long as still() is true."""
        self.fired = False
        while still():
            self.step()

    cdef int wait(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until) except -2:
        """poll(2) for main, while the other tasks go on; until: a time, or NEVER.

        Returns how many descriptors are ready, or -1 with errno EINTR.
        """
        cdef int ready = 0
        self.account(self.main)
        self.polling = True
        self.arm(polled, count, until)
        self.interrupted = False
        try:
            while ready == 0:
                if not self.step():
                    continue
                if self.fired or self.unwatched:
                    # Asked again: the event may be of an earlier wait, or somebody was faster.
                    ready = _sys.poll(polled, count, 0)
                    self.fired = False
                    if ready == 0:
                        self.arm(polled, count, until)
                if ready == 0:
                    if self.interrupted:
                        _sys.errno = _sys.EINTR
                        ready = -1
                    elif until != NEVER and monotonic() >= until:
                        break
        finally:
            self.polling = False
            self.until = NEVER
        return ready

    cdef int step(self) except -1:
        """Let others run until it is main's turn again; true if nobody waits to begin."""
        cdef Task task
        if self.starting:
            task = self.starting.popleft()
            task.greenlet = self.greenlet_class(task.tasks.run_one, self.main.greenlet)
            self.enqueue(self.main)  # in turn with those that are ready
        else:
            if self.fired:
                return 1
            task = self.next_task()
        if task is not self.main:
            try:
                self.resume(task)
            finally:
                task = self.current
                self.current = self.main
            if task is not self.main:  # it has ended
                self.account(task)
        return not self.starting

    cdef void arm(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until) noexcept:
        """Have the epoll tell once when one of these is ready, or it is time.

        Anew each time, as poll(2) takes its list: who was closed, and whose number is somebody
        else's by now, is found out here. What is left behind can fire once more.
        """
        cdef _sys.epoll_event event
        cdef _sys.nfds_t index
        self.until = until
        self.fired = self.unwatched = False
        event.events = _sys.EPOLLIN | _sys.EPOLLONESHOT
        event.data.u64 = LOOP
        for index in range(count):
            if polled[index].fd < 0:
                continue
            if _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_MOD, polled[index].fd, &event) == 0:
                continue
            if (_sys.errno == _sys.ENOENT and _sys.epoll_ctl(
                    self.poller, _sys.EPOLL_CTL_ADD, polled[index].fd, &event) == 0):
                continue
            if _sys.errno == _sys.EPERM or _sys.errno == _sys.EBADF:
                self.fired = True  # for poll(2) a regular file is ready; so is what is closed
            else:
                self.unwatched = True  # ENOSPC: the user has too many in epolls (epoll(7)); ENOMEM
        if self.unwatched:
            self.until = sooner(until, monotonic() + SLICE)
