# System calls that only the load makes: what fastsock/_sys.pxd doesn't have. Declarations only.

from fastsock._sys cimport iovec, mmsghdr, msghdr, sockaddr, socklen_t, timespec

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNREFUSED
        EINPROGRESS
        ENOENT
        ENOTCONN
        EPIPE

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int poller, int operation, int fd, epoll_event *event)
    int epoll_wait(int poller, epoll_event *events, int most, int milliseconds)
    enum:
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLLIN
        EPOLLOUT

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec *duration, timespec *left)

cdef extern from "<sys/socket.h>" nogil:
    int socket(int family, int kind, int protocol)
    int bind(int fd, const sockaddr *address, socklen_t length)
    int connect(int fd, const sockaddr *address, socklen_t length)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
    enum:
        SOCK_NONBLOCK
        SOCK_STREAM
        SO_RCVBUF

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        unsigned int s_addr
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    unsigned int htonl(unsigned int number)
    unsigned int ntohl(unsigned int number)
    unsigned short htons(unsigned short number)
    enum:
        INADDR_LOOPBACK
        IPPROTO_IP
        IPPROTO_TCP
        IPPROTO_UDP

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY

cdef extern from *:
    """
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103  /* Linux 4.18; <netinet/udp.h> since glibc 2.31 */
    #endif
    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif
    """
    enum:
        UDP_SEGMENT
        IP_BIND_ADDRESS_NO_PORT

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int operation, unsigned long argument)
    enum:
        PR_GET_TIMERSLACK
        PR_SET_TIMERSLACK

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t size, const void *wanted, size_t length)
