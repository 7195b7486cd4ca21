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
        EEXIST
        EINVAL
        EMFILE
        ENFILE
        ENOENT
        ENOBUFS
        ENOMEM
        ENOSYS
        ENOTSOCK
        EPERM

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

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<sys/eventfd.h>" nogil:
    ctypedef unsigned long long eventfd_t
    int eventfd(unsigned int initval, int flags)
    int eventfd_read(int fd, eventfd_t *value)
    int eventfd_write(int fd, eventfd_t value)
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        unsigned long long u64
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int room, int timeout)
    enum:
        EPOLLERR
        EPOLLET
        EPOLLHUP
        EPOLLIN
        EPOLLONESHOT
        EPOLLOUT
        EPOLLPRI
        EPOLLRDHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    enum:
        CLOCK_MONOTONIC
        CLOCK_MONOTONIC_COARSE

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)
    enum:
        FIONBIO
        FIONREAD

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<signal.h>" nogil:
    ctypedef struct siginfo_t:
        int si_pid
    int kill(int pid, int signal)
    enum:
        SIGTERM

cdef extern from "<sys/wait.h>" nogil:
    int waitid(int kind, int number, siginfo_t *told, int options)
    enum:
        P_PID
        WEXITED
        WNOHANG
        WNOWAIT

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int operation, ...)
    enum:
        FD_CLOEXEC
        F_DUPFD
        F_DUPFD_CLOEXEC
        F_SETFD

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

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
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int getsockname(int fd, sockaddr *address, socklen_t *length)
    ssize_t sendto(int fd, const void *data, size_t size, int flags,
                   const sockaddr *address, socklen_t length)
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, timespec *timeout)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *item)
    unsigned char *CMSG_DATA(cmsghdr *item)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    enum:
        AF_INET
        AF_INET6
        AF_UNIX
        MSG_CMSG_CLOEXEC
        MSG_CTRUNC
        MSG_DONTWAIT
        MSG_ERRQUEUE
        MSG_NOSIGNAL
        MSG_OOB
        MSG_PEEK
        MSG_TRUNC
        MSG_WAITALL
        SCM_RIGHTS
        SHUT_RD
        SHUT_WR
        SHUT_RDWR
        SOCK_CLOEXEC
        SOCK_DGRAM
        SOCK_SEQPACKET
        SOCK_STREAM
        SOL_SOCKET

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
