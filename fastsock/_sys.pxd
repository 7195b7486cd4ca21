# System calls, structs and constants, declared once. Declarations only.
# Each name is described by the man page of section 2, 3 or 7 that bears it.

cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN
        EBADF
        ECONNABORTED
        ECONNRESET
        EINTR
        EINVAL
        EMFILE
        ENFILE
        ENOBUFS
        ENOMEM
        ENOTSOCK

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    ctypedef unsigned long nfds_t
    int poll(pollfd *fds, nfds_t nfds, int timeout)
    enum:
        POLLIN
        POLLNVAL
        POLLOUT

cdef extern from "<sys/eventfd.h>" nogil:
    ctypedef unsigned long long eventfd_t
    int eventfd(unsigned int initval, int flags)
    int eventfd_read(int fd, eventfd_t *value)
    int eventfd_write(int fd, eventfd_t value)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    enum:
        CLOCK_MONOTONIC

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum:
        FIONBIO
        FIONREAD

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    struct sockaddr:
        sa_family_t sa_family
    struct sockaddr_storage:
        sa_family_t ss_family
    int accept4(int fd, sockaddr *address, socklen_t *length, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int shutdown(int fd, int how)
    ssize_t recvfrom(int fd, void *buffer, size_t size, int flags,
                     sockaddr *address, socklen_t *length)
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        MSG_DONTWAIT
        MSG_NOSIGNAL
        SHUT_WR
        SOCK_CLOEXEC

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    enum:
        INET6_ADDRSTRLEN

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        char *sun_path

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *source, char *text, socklen_t size)
    unsigned short ntohs(unsigned short number)
    unsigned int ntohl(unsigned int number)
