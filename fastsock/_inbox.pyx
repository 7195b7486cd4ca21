"""What was received from a datagram socket ahead of its being asked for.

recvmmsg(2) brings up to BATCH datagrams with one call. They wait here, whole and with their
addresses and ancillary data, until they are dispatched or received by a handler.

Threads: all under the GIL. Nothing here gives it up: no call of this module waits.
"""

import os
import weakref

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from fastsock cimport _sys
from fastsock._accept cimport peer_address
from fastsock._waiter cimport fail

cdef enum:
    KNOWN = 256  # addresses; a power of two
    PLACES = 1024
    # The largest datagram of IP. Pages of its room that no datagram reaches are never touched.
    INET_ROOM = 1 << 16
    # What the datagrams of a Unix socket may take of the address space.
    UNIX_MEMORY = 1 << 26
    # The largest of those, where the system does not tell.
    UNIX_ROOM = 1 << 23
    # From one datagram to the next, so that their beginnings do not fall into the same cache set.
    COLOUR = 5 * 64
    CONTROL = 2048  # bytes of ancillary data: 253 descriptors are the most that there can be
    SCM_PIDFD = 4  # linux/socket.h; not in the C library's headers yet

# Where a seccomp filter, or the kernel, refuses recvmmsg(2): datagrams come one by one.
cdef bint _refused = False

# Counts the forks that led to this process. What had been received is the parent's to serve.
cdef unsigned long _generation = 0


# The inboxes of this process.
cdef object _inboxes = weakref.WeakSet()


def _after_fork_in_child():
    global _generation
    cdef Inbox inbox
    _generation += 1
    for inbox in list(_inboxes):
        inbox.waiting()  # which closes this process's copies of passed descriptors


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef class AddressBook:
    """Addresses of peers that have been seen lately, in both forms.

    Two tables in which a newer entry takes the place of an older one: by the bytes of the
    sockaddr, and by the identity of the Python address that was made of it. What isn't found is
    made, or resolved, anew.
    """

    def __cinit__(self):
        self.known = <Known *> calloc(KNOWN, sizeof(Known))
        self.places = <unsigned short *> calloc(PLACES, sizeof(unsigned short))
        if self.known == NULL or self.places == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int index
        if self.known != NULL:
            for index in range(KNOWN):
                if self.known[index].address != NULL:
                    Py_DECREF(<object> self.known[index].address)
        free(self.known)
        free(self.places)

    cdef object name(self, _sys.sockaddr_storage *raw, _sys.socklen_t length):
        """The Python form of an address."""
        cdef const unsigned char *octets = <const unsigned char *> raw
        cdef unsigned int mixed = 2166136261u  # FNV-1a
        cdef _sys.socklen_t index
        cdef Known *entry
        cdef void *former
        for index in range(length):
            mixed = (mixed ^ octets[index]) * 16777619u
        mixed ^= mixed >> 15
        entry = &self.known[mixed & (KNOWN - 1)]
        if (entry.address != NULL and entry.length == length
                and memcmp(&entry.raw, raw, length) == 0):
            return <object> entry.address
        made = peer_address(raw, length)
        former = entry.address
        memcpy(&entry.raw, raw, length)
        entry.length = length
        Py_INCREF(made)
        entry.address = <void *> made
        self.places[_place(made)] = mixed & (KNOWN - 1)
        if former != NULL:
            Py_DECREF(<object> former)
        return made

    cdef Known *find(self, object address) noexcept:
        """Where to send to, if this very object came out of name() lately; or NULL."""
        cdef Known *entry = &self.known[self.places[_place(address)]]
        # The entry holds a reference, so no other object can have this identity.
        return entry if entry.address == <void *> address else NULL


cdef object _unix_room = None


cdef size_t _room_of_unix() except 0:
    """The largest datagram that a Unix socket sends: of its SO_SNDBUF, at most twice wmem_max.

    socket(7): the kernel doubles what a program sets. Privileged ones may go beyond that.
    """
    global _unix_room
    if _unix_room is None:
        try:
            with open("/proc/sys/net/core/wmem_max", "rb") as file:
                _unix_room = max(1 << 16, min(2 * int(file.read()), UNIX_MEMORY))
        except (OSError, ValueError):
            return UNIX_ROOM  # no descriptor is left, or another network namespace
    return _unix_room


cdef inline size_t _place(object address) noexcept:
    cdef size_t number = <size_t> <void *> address
    return (number >> 4 ^ number >> 14) & (PLACES - 1)


cdef class Inbox:
    """The datagrams of one socket that wait."""

    def __cinit__(self):
        self.generation = _generation
        self.gathered = []
        self.kind = -1
        self.users = 1
        _inboxes.add(self)

    def __dealloc__(self):
        self.abandon()
        self.free_memory()

    cdef void free_memory(self) noexcept:
        if self.memory != NULL:
            munmap(self.memory, self.mapped)
        free(self.headers)
        free(self.pieces)
        free(self.names)
        free(self.controls)
        self.memory = self.controls = NULL
        self.headers = NULL
        self.pieces = NULL
        self.names = NULL
        self.room = self.capacity = 0

    cdef unsigned int waiting(self) except? 0:
        """How many wait."""
        if self.generation != _generation:
            self.abandon()
            self.gathered = []
            self.gatherer = 0
            self.generation = _generation
        return self.end - self.begin

    cdef int make_room(self, int family, size_t size) except -1:
        """Room for datagrams of this size at least, or of any size that there can be."""
        cdef size_t room = INET_ROOM
        cdef unsigned int index, capacity = BATCH
        cdef void *memory
        self.largest = family != _sys.AF_UNIX
        if family == _sys.AF_UNIX:
            # A program that wants megabytes gets fewer at a time.
            room = max(size, _room_of_unix())
            capacity = max(<size_t> 1, min(<size_t> capacity, <size_t> UNIX_MEMORY // room))
        if room == self.room:
            return 0
        self.free_memory()
        if self.book is None:
            self.book = AddressBook()
        memory = mmap(NULL, capacity * (room + COLOUR), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if memory == MAP_FAILED and capacity > 1:  # the address space is limited
            capacity = 1
            memory = mmap(NULL, room + COLOUR, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if memory == MAP_FAILED:
            raise MemoryError
        self.memory = <char *> memory
        self.mapped = capacity * (room + COLOUR)
        self.headers = <_sys.mmsghdr *> calloc(capacity, sizeof(_sys.mmsghdr))
        self.pieces = <_sys.iovec *> calloc(capacity, sizeof(_sys.iovec))
        self.names = <_sys.sockaddr_storage *> calloc(capacity, sizeof(_sys.sockaddr_storage))
        self.controls = <char *> calloc(capacity, CONTROL)
        if (self.headers == NULL or self.pieces == NULL
                or self.names == NULL or self.controls == NULL):
            self.free_memory()
            raise MemoryError
        self.room = room
        self.capacity = capacity
        for index in range(capacity):
            self.pieces[index].iov_base = self.memory + index * (room + COLOUR)
            self.pieces[index].iov_len = room
            self.headers[index].msg_hdr.msg_iov = &self.pieces[index]
            self.headers[index].msg_hdr.msg_iovlen = 1
            self.headers[index].msg_hdr.msg_name = &self.names[index]
            self.headers[index].msg_hdr.msg_control = self.controls + index * CONTROL
        return 0

    cdef int fill(self, int descriptor, size_t size, unsigned int most) except -1:
        """Receive up to ``most`` datagrams that are there; return how many came.

        size: what the program takes of each; more is kept of a larger one, for a handler that
        receives the next by itself. Raises OSError as recvmsg(2) fails. Only for an empty inbox.
        """
        global _refused
        cdef _sys.sockaddr_storage own
        cdef unsigned int index
        cdef int count = 0
        cdef int error
        # poll(2) may have announced a datagram that is then dropped for its checksum.
        cdef int flags = _sys.MSG_DONTWAIT | _sys.MSG_TRUNC | _sys.MSG_CMSG_CLOEXEC
        if self.room == 0 or (self.room < size and not self.largest):
            own = _name_of(descriptor)
            self.make_room(own.ss_family, size)
        most = 1 if self.passes else min(most, self.capacity)
        for index in range(most):
            self.headers[index].msg_hdr.msg_namelen = sizeof(_sys.sockaddr_storage)
            # One by itself is served, and what came along is nobody's: the kernel drops it.
            self.headers[index].msg_hdr.msg_controllen = CONTROL if most > 1 else 0
            self.headers[index].msg_hdr.msg_flags = 0
        if most > 1 and not _refused:
            count = _sys.recvmmsg(descriptor, self.headers, most, flags, NULL)
            if count < 0:
                error = _sys.errno
                if error == _sys.ENOSYS or error == _sys.EPERM:
                    count = self.one_by_one(descriptor, most, flags)
                    _refused = True
                elif error == _sys.EAGAIN or error == _sys.EINTR:
                    return 0
                else:
                    fail(error)
        else:
            count = self.one_by_one(descriptor, most, flags)
        for index in range(<unsigned int> count):
            if self.headers[index].msg_hdr.msg_controllen:
                # They count against RLIMIT_NOFILE, which peers should not be able to exhaust.
                self.passes = self.passes or _passes(&self.headers[index].msg_hdr)
            # A path of the greatest length comes without its end.
            if self.headers[index].msg_hdr.msg_namelen < sizeof(_sys.sockaddr_storage):
                (<char *> &self.names[index])[self.headers[index].msg_hdr.msg_namelen] = 0
        self.begin = 0
        self.end = count
        self.generation = _generation
        return count

    cdef int one_by_one(self, int descriptor, unsigned int most, int flags) except -1:
        """As recvmmsg(2), which stops at the first that fails."""
        cdef unsigned int index
        cdef Py_ssize_t size
        cdef int error
        for index in range(most):
            size = _sys.recvmsg(descriptor, &self.headers[index].msg_hdr, flags)
            if size < 0:
                error = _sys.errno
                if index or error == _sys.EAGAIN or error == _sys.EINTR:
                    return index
                fail(error)
            self.headers[index].msg_len = size
        return most

    # Of the first that waits:

    cdef size_t length(self) noexcept:
        """Its whole length, in bytes."""
        return self.headers[self.begin].msg_len

    cdef object data(self, size_t most):
        cdef size_t size = min(min(self.length(), self.room), most)
        return PyBytes_FromStringAndSize(<char *> self.pieces[self.begin].iov_base, size)

    cdef void sender(self, Sender *sender) noexcept:
        """Who sent it; to be had before drop(), while no Python code runs."""
        sender.length = self.headers[self.begin].msg_hdr.msg_namelen
        memcpy(&sender.raw, &self.names[self.begin],
               min(<size_t> sender.length + 1, sizeof(sender.raw)))  # with its end

    cdef object name(self, Sender *sender):
        """The address of a sender. Making it may run Python code, a finalizer say."""
        return None if sender.length == 0 else self.book.name(&sender.raw, sender.length)

    cdef size_t copy(self, void *buffer, size_t size) noexcept:
        """Copy up to size bytes; return how many."""
        size = min(min(self.length(), self.room), size)
        memcpy(buffer, self.pieces[self.begin].iov_base, size)
        return size

    cdef Ancillary ancillary(self, int flags):
        """What came along, with the descriptors in there; copies of them with MSG_PEEK."""
        cdef Ancillary taken = Ancillary.__new__(Ancillary)
        cdef _sys.msghdr *message = &self.headers[self.begin].msg_hdr
        taken.cut = message.msg_flags & _sys.MSG_CTRUNC
        if message.msg_controllen == 0:
            return taken
        taken.message.msg_control = malloc(message.msg_controllen)
        if taken.message.msg_control == NULL:
            raise MemoryError
        memcpy(taken.message.msg_control, message.msg_control, message.msg_controllen)
        taken.message.msg_controllen = message.msg_controllen
        if flags & _sys.MSG_PEEK:
            _duplicate_all(&taken.message)
        else:
            message.msg_controllen = 0
        return taken

    cdef int drop(self) noexcept:
        """It is received: the next one is the first. Descriptors that nobody took are closed."""
        cdef _sys.msghdr *message = &self.headers[self.begin].msg_hdr
        if self.begin == self.end:
            return 0
        if message.msg_controllen:
            _close_all(message)
        self.begin += 1
        return 0

    cdef int abandon(self) noexcept:
        """All are dropped."""
        while self.begin != self.end:
            self.drop()
        return 0


cdef _sys.sockaddr_storage _name_of(int descriptor) noexcept:
    cdef _sys.sockaddr_storage name
    cdef _sys.socklen_t length = sizeof(name)
    name.ss_family = 0
    _sys.getsockname(descriptor, <_sys.sockaddr *> &name, &length)
    return name


cdef class Ancillary:
    """Ancillary data that was received, and the descriptors in it that nobody has taken yet."""

    def __dealloc__(self):
        if self.message.msg_control != NULL:
            _close_all(&self.message)
            free(self.message.msg_control)

    cdef list items(self, size_t most, int flags):
        """[(level, type, data)], as recvmsg(2) with a buffer of ``most`` bytes would bring it.

        flags: those of the call. Sets ``cut`` if something does not fit. Descriptors are the
        caller's from here on.
        """
        cdef _sys.cmsghdr *item
        cdef size_t size, header = _sys.CMSG_LEN(0)
        cdef list found = []
        if self.message.msg_controllen == 0:
            return found
        item = _sys.CMSG_FIRSTHDR(&self.message)
        while item != NULL:
            size = item.cmsg_len - header
            if header + size > most:
                self.cut = _sys.MSG_CTRUNC
                size = most - header if most > header else 0
                if _is_descriptors(item):
                    size -= size % sizeof(int)
                if size == 0:
                    break
            number = item.cmsg_type
            data = PyBytes_FromStringAndSize(<char *> _sys.CMSG_DATA(item), size)
            found.append((item.cmsg_level, number, data))
            if _is_descriptors(item):
                _hand_over(item, size // sizeof(int), flags & _sys.MSG_CMSG_CLOEXEC)
            most -= min(most, _sys.CMSG_SPACE(size))
            item = _sys.CMSG_NXTHDR(&self.message, item)
        return found


cdef bint _is_descriptors(_sys.cmsghdr *item) noexcept:
    return (item.cmsg_level == _sys.SOL_SOCKET
            and (item.cmsg_type == _sys.SCM_RIGHTS or item.cmsg_type == SCM_PIDFD))


cdef size_t _count(_sys.cmsghdr *item) noexcept:
    return (item.cmsg_len - _sys.CMSG_LEN(0)) // sizeof(int)


cdef bint _passes(_sys.msghdr *message) noexcept:
    cdef _sys.cmsghdr *item = _sys.CMSG_FIRSTHDR(message)
    while item != NULL:
        if _is_descriptors(item):
            return True
        item = _sys.CMSG_NXTHDR(message, item)
    return False


cdef void _hand_over(_sys.cmsghdr *item, size_t count, bint closing) noexcept:
    """The first ``count`` descriptors are the program's; the others are closed."""
    cdef int *descriptors = <int *> _sys.CMSG_DATA(item)
    cdef size_t index
    for index in range(_count(item)):
        if index >= count:
            _sys.close(descriptors[index])
        elif not closing and item.cmsg_type == _sys.SCM_RIGHTS:
            _sys.fcntl(descriptors[index], _sys.F_SETFD, 0)  # as recvmsg(2) leaves it
    item.cmsg_type = 0  # no descriptors to be closed any more


cdef void _duplicate_all(_sys.msghdr *message) noexcept:
    """Put copies in the place of descriptors (-1 where none are left)."""
    cdef _sys.cmsghdr *item = _sys.CMSG_FIRSTHDR(message)
    cdef int *descriptors
    cdef size_t index, count
    while item != NULL:
        if _is_descriptors(item):
            descriptors = <int *> _sys.CMSG_DATA(item)
            count = _count(item)
            for index in range(count):
                descriptors[index] = _sys.fcntl(descriptors[index], _sys.F_DUPFD_CLOEXEC, 0)
        item = _sys.CMSG_NXTHDR(message, item)


cdef void _close_all(_sys.msghdr *message) noexcept:
    cdef _sys.cmsghdr *item = _sys.CMSG_FIRSTHDR(message)
    cdef size_t index
    while item != NULL:
        if _is_descriptors(item):
            for index in range(_count(item)):
                _sys.close((<int *> _sys.CMSG_DATA(item))[index])
        item = _sys.CMSG_NXTHDR(message, item)
