/* Preloaded into the server of faults and starts: its system calls fail as faults_plan() and
 * faults_mix() say. Only calls on sockets that were bound or accepted here are touched.
 *
 * EAGAIN is for calls that do not wait. In an edge-triggered epoll it must be followed by an edge,
 * and so must a receive that has brought less than it could: the registration is renewed, as if
 * the rest had come right after. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum call { TAKE, RECEIVE, SEND, THREAD, FORK, CALLS };
enum kind { NOBODYS, LISTENER, DATAGRAMS, CONNECTION };
enum { SOCKETS = 1 << 16, SHORT = -1 };

static struct {
    atomic_int error;
    atomic_long every, left, calls, injected;
} plans[CALLS];
static atomic_int percent;
static atomic_long looks, mixed_eintr, mixed_eagain, mixed_short, mixed_calls;
static atomic_uchar kinds[SOCKETS];
static struct {
    atomic_int epoll;
    struct epoll_event event;
} registered[SOCKETS];

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

void faults_plan(int call, int error, long every, long times)
{
    plans[call].left = 0;
    plans[call].error = error;
    plans[call].every = every;
    plans[call].calls = plans[call].injected = looks = 0;
    plans[call].left = times;
}

void faults_mix(int of_hundred)
{
    mixed_eintr = mixed_eagain = mixed_short = mixed_calls = 0;
    percent = of_hundred;
}

long faults_calls(int call) { return plans[call].calls; }
long faults_injected(int call) { return plans[call].injected; }
long faults_looks(void) { return looks; }
long faults_mixed(int which)
{
    return which == 0 ? mixed_calls : which == 1 ? mixed_eintr
         : which == 2 ? mixed_eagain : mixed_short;
}

static unsigned dice(void)
{
    static _Thread_local uint32_t state;
    static atomic_uint seeds = 1;
    if (!state)
        state = 2654435761u * seeds++;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static enum kind kind_of(int fd)
{
    return fd >= 0 && fd < SOCKETS ? kinds[fd] : NOBODYS;
}

static int mark(int fd, enum kind kind)
{
    if (fd >= 0 && fd < SOCKETS)
        kinds[fd] = kind;
    return fd;
}

static int planned(enum call call, int does_not_wait)
{
    long left;
    int error = plans[call].error;
    if ((left = plans[call].left) <= 0 || (error == EAGAIN && !does_not_wait))
        return 0;
    if (++plans[call].calls % plans[call].every)
        return 0;
    while (!atomic_compare_exchange_weak(&plans[call].left, &left, left - 1))
        if (left <= 0)
            return 0;
    plans[call].injected++;
    return error;
}

static void edge(int fd)
{
    struct epoll_event event = registered[fd].event;
    int epoll = registered[fd].epoll - 1;
    int before = errno;
    REAL(epoll_ctl);
    if (epoll >= 0)
        real(epoll, EPOLL_CTL_MOD, fd, &event);
    errno = before;
}

/* 0, SHORT, or an errno. */
static int fault(enum call call, int fd, int flags, size_t size)
{
    enum kind kind = kind_of(fd);
    int error, does_not_wait, there = 0;
    if (kind == NOBODYS || kind == LISTENER)
        return 0;
    does_not_wait = flags & MSG_DONTWAIT || fcntl(fd, F_GETFL) & O_NONBLOCK;
    error = planned(kind == DATAGRAMS && call == RECEIVE ? TAKE : call, does_not_wait);
    if (error && call == RECEIVE && does_not_wait && !ioctl(fd, FIONREAD, &there) && there)
        looks++;
    if (!error && percent && kind == CONNECTION && !(flags & MSG_PEEK)) {
        mixed_calls++;
        if (dice() % 100 < (unsigned) percent) {
            switch (dice() % 3) {
            case 0:
                error = EINTR;
                mixed_eintr++;
                break;
            case 1:
                if (does_not_wait) {
                    error = EAGAIN;
                    mixed_eagain++;
                    break;
                } /* fall through */
            default:
                if (size > 1) {
                    error = SHORT;
                    mixed_short++;
                }
            }
        }
    }
    if (error == EAGAIN)
        edge(fd);
    return error;
}

static int failed(int error)
{
    errno = error;
    return -1;
}

/* Make the call, or not, or for less. `size` is changed, for `expression`. */
#define WITH_FAULTS(call, fd, flags, size, expression) \
    int error = fault(call, fd, flags, size); \
    ssize_t count; \
    if (error > 0) \
        return failed(error); \
    if (error == SHORT) \
        size = 1 + dice() % (size - 1); \
    count = expression; \
    if (error == SHORT && call == RECEIVE && count > 0) \
        edge(fd); \
    return count

ssize_t recv(int fd, void *buffer, size_t size, int flags)
{
    REAL(recv);
    WITH_FAULTS(RECEIVE, fd, flags, size, real(fd, buffer, size, flags));
}

ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, struct sockaddr *address,
                 socklen_t *length)
{
    REAL(recvfrom);
    WITH_FAULTS(RECEIVE, fd, flags, size, real(fd, buffer, size, flags, address, length));
}

ssize_t read(int fd, void *buffer, size_t size)
{
    REAL(read);
    WITH_FAULTS(RECEIVE, fd, 0, size, real(fd, buffer, size));
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    REAL(send);
    WITH_FAULTS(SEND, fd, flags, size, real(fd, data, size, flags));
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *address,
               socklen_t length)
{
    REAL(sendto);
    WITH_FAULTS(SEND, fd, flags, size, real(fd, data, size, flags, address, length));
}

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    WITH_FAULTS(SEND, fd, 0, size, real(fd, data, size));
}

static size_t first(const struct msghdr *message)
{
    return message->msg_iovlen ? message->msg_iov[0].iov_len : 0;
}

/* A part of the first piece is a short transfer. */
static ssize_t less(ssize_t (*real)(int, struct msghdr *, int), int fd, struct msghdr *message,
                    int flags, size_t size)
{
    struct iovec piece = message->msg_iov[0], *pieces = message->msg_iov;
    size_t count = message->msg_iovlen;
    ssize_t result;
    if (size == piece.iov_len)
        return real(fd, message, flags);
    piece.iov_len = size;
    message->msg_iov = &piece;
    message->msg_iovlen = 1;
    result = real(fd, message, flags);
    message->msg_iov = pieces;
    message->msg_iovlen = count;
    return result;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    REAL(recvmsg);
    size_t size = first(message);
    WITH_FAULTS(RECEIVE, fd, flags, size, less(real, fd, message, flags, size));
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    REAL(sendmsg);
    struct msghdr copy = *message;
    size_t size = first(message);
    WITH_FAULTS(SEND, fd, flags, size,
                less((ssize_t (*)(int, struct msghdr *, int)) real, fd, &copy, flags, size));
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    REAL(recvmmsg);
    int error = fault(RECEIVE, fd, flags, 0);
    return error > 0 ? failed(error) : real(fd, messages, count, flags, timeout);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    REAL(sendmmsg);
    int error = fault(SEND, fd, flags, 0);
    return error > 0 ? failed(error) : real(fd, messages, count, flags);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    REAL(accept4);
    int error = planned(TAKE, 1);
    return error ? failed(error) : mark(real(fd, address, length, flags), CONNECTION);
}

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    REAL(bind);
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    mark(fd, type == SOCK_DGRAM ? DATAGRAMS : LISTENER);
    return real(fd, address, length);
}

int close(int fd)
{
    REAL(close);
    if (fd >= 0 && fd < SOCKETS) {
        kinds[fd] = NOBODYS;
        registered[fd].epoll = 0;
    }
    return real(fd);
}

/* A wait that a signal ends is part of the mixture. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    REAL(poll);
    if (percent && count && kind_of(fds[0].fd) == CONNECTION && dice() % 100 < (unsigned) percent)
        return failed(EINTR);
    return real(fds, count, timeout);
}

int epoll_wait(int epoll, struct epoll_event *events, int room, int timeout)
{
    REAL(epoll_wait);
    if (percent && dice() % 100 < (unsigned) percent)
        return failed(EINTR);
    return real(epoll, events, room, timeout);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    REAL(epoll_ctl);
    int result = real(epoll, operation, fd, event);
    if (kind_of(fd) != CONNECTION || result < 0)
        return result;
    registered[fd].epoll = 0;
    if (operation != EPOLL_CTL_DEL && event->events & EPOLLET && !(event->events & EPOLLONESHOT)) {
        registered[fd].event = *event;
        registered[fd].epoll = epoll + 1;
    }
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument)
{
    REAL(pthread_create);
    int error = planned(THREAD, 1);
    return error ? error : real(thread, attributes, start, argument);
}

pid_t fork(void)
{
    REAL(fork);
    int error = planned(FORK, 1);
    return error ? failed(error) : real();
}
