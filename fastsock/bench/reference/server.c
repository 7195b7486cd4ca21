/* The physical limit that the other servers are measured against: one thread, level-triggered
 * epoll(7), no allocation per message.
 *
 *   server once     127.0.0.1 | /path   answers a connection's first bytes with themselves, closes
 *   server lines    127.0.0.1 | /path   answers each line with itself
 *   server udp      127.0.0.1 | /path   answers each datagram with itself
 *   server udpbatch 127.0.0.1 | /path   the same, up to 32 of them per system call
 *
 * Prints the port (0 for a path), then serves until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK = 1 << 16, EVENTS = 256, BATCH = 32 };
enum { PACKET = 8192, STRIDE = PACKET + 64 }; /* + 64: not all in the same lines of the cache */

struct connection { /* what has come of a line that is not complete, then what could not be sent */
    char *bytes;
    size_t held, room;
    size_t to_send; /* > 0: waits for EPOLLOUT */
};

static struct connection *connections;
static size_t limit;
static int poller, once;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void drop(int fd) {
    connections[fd].held = connections[fd].to_send = 0;
    if (once)
        shutdown(fd, SHUT_WR);
    close(fd); /* leaves the epoll with it */
}

static void watch(int fd, unsigned events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void keep(struct connection *c, const char *bytes, size_t count) {
    if (c->held + count > c->room) {
        c->room = 2 * (c->held + count);
        c->bytes = realloc(c->bytes, c->room);
        if (!c->bytes)
            die("realloc");
    }
    memmove(c->bytes + c->held, bytes, count);
    c->held += count;
}

static int reply(int fd, const char *bytes, size_t count) {
    while (count) {
        ssize_t sent = send(fd, bytes, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno != EAGAIN)
                return -1;
            connections[fd].held = 0;
            keep(&connections[fd], bytes, count);
            connections[fd].to_send = count;
            watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
            return 0;
        }
        bytes += sent;
        count -= (size_t)sent;
    }
    return 0;
}

static void readable(int fd) {
    static char chunk[CHUNK];
    struct connection *c = &connections[fd];
    ssize_t got = recv(fd, chunk, CHUNK, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        drop(fd);
        return;
    }
    if (once) {
        reply(fd, chunk, (size_t)got);
        drop(fd);
        return;
    }
    char *end = memrchr(chunk, '\n', (size_t)got);
    if (!end) {
        keep(c, chunk, (size_t)got);
        return;
    }
    size_t whole = (size_t)(end + 1 - chunk), rest = (size_t)got - whole;
    if (!c->held) {
        if (reply(fd, chunk, whole) < 0) {
            drop(fd);
            return;
        }
    } else {
        keep(c, chunk, whole);
        size_t held = c->held;
        c->held = 0;
        if (reply(fd, c->bytes, held) < 0) {
            drop(fd);
            return;
        }
    }
    if (rest)
        keep(c, end + 1, rest); /* this load never leaves a rest behind a partial send */
}

static void writable(int fd) {
    struct connection *c = &connections[fd];
    ssize_t sent = send(fd, c->bytes, c->to_send, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) {
        drop(fd);
        return;
    }
    if (sent > 0) {
        memmove(c->bytes, c->bytes + sent, c->held - (size_t)sent);
        c->held -= (size_t)sent;
        c->to_send -= (size_t)sent;
        if (!c->to_send)
            watch(fd, EPOLLIN, EPOLL_CTL_MOD);
    }
}

static int bound(const char *where, int type) {
    int fd, one = 1;
    if (where[0] == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, where, sizeof(address.sun_path) - 1);
        fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            die(where);
    } else {
        struct sockaddr_in address = {.sin_family = AF_INET};
        inet_pton(AF_INET, where, &address.sin_addr);
        fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
        if (type & SOCK_STREAM)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            die(where);
    }
    return fd;
}

static void tell_port(int fd) {
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    getsockname(fd, (struct sockaddr *)&address, &length);
    printf("%d\n", address.sin_family == AF_INET ? ntohs(address.sin_port) : 0);
    fflush(stdout);
}

/* After recvmmsg(2) took nothing. The socket is a blocking one: a full Unix peer is
 * waited for in sendto(2), for poll(2) tells nothing about a peer the socket isn't connected to. */
static void wait_for_datagrams(int fd) {
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    if (errno != EAGAIN)
        die("receive");
    poll(&wanted, 1, -1);
}

/* As the stream servers above: what is ready is asked for before each receive. */
static void one_by_one(int fd) {
    static char packet[PACKET];
    struct sockaddr_un peer; /* the longest address there is here */
    struct epoll_event event;
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        if (epoll_wait(poller, &event, 1, -1) < 0)
            die("epoll_wait");
        socklen_t length = sizeof(peer);
        struct sockaddr *address = (struct sockaddr *)&peer;
        ssize_t got = recvfrom(fd, packet, PACKET, MSG_DONTWAIT, address, &length);
        if (got >= 0)
            sendto(fd, packet, (size_t)got, 0, address, length);
    }
}

static void in_batches(int fd) {
    static char packets[BATCH][STRIDE];
    static struct sockaddr_un peers[BATCH];
    static struct iovec pieces[BATCH];
    static struct mmsghdr messages[BATCH];
    for (int i = 0; i < BATCH; i++) {
        pieces[i].iov_base = packets[i];
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = &peers[i], .msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            pieces[i].iov_len = PACKET;
            messages[i].msg_hdr.msg_namelen = sizeof(peers[i]);
        }
        int got = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        if (got < 0)
            wait_for_datagrams(fd);
        for (int i = 0; i < got; i++)
            pieces[i].iov_len = messages[i].msg_len;
        for (int i = 0; i < got;) {
            int sent = sendmmsg(fd, messages + i, (unsigned)(got - i), 0);
            i += sent > 0 ? sent : 1; /* fails only if the first of them does: that peer has gone */
        }
    }
}

static void serve_datagrams(const char *where, int batched) {
    int fd = bound(where, SOCK_DGRAM), room = 1 << 20;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
    tell_port(fd);
    if (batched)
        in_batches(fd);
    else
        one_by_one(fd);
}

int main(int count, char **arguments) {
    struct rlimit files;
    struct epoll_event events[EVENTS];
    if (count != 3)
        return 2;
    once = !strcmp(arguments[1], "once");
    signal(SIGPIPE, SIG_IGN);
    if (!strncmp(arguments[1], "udp", 3))
        serve_datagrams(arguments[2], !strcmp(arguments[1], "udpbatch"));
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    limit = files.rlim_cur < 100000 ? files.rlim_cur : 100000;
    connections = calloc(limit, sizeof(*connections));
    int accepting = bound(arguments[2], SOCK_STREAM | SOCK_NONBLOCK);
    if (listen(accepting, SOMAXCONN) < 0)
        die("listen");
    poller = epoll_create1(EPOLL_CLOEXEC);
    watch(accepting, EPOLLIN, EPOLL_CTL_ADD);
    tell_port(accepting);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == accepting) {
                int accepted = accept4(accepting, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (accepted >= 0 && (size_t)accepted < limit)
                    watch(accepted, EPOLLIN, EPOLL_CTL_ADD);
                else if (accepted >= 0)
                    close(accepted);
            } else if (connections[fd].to_send) {
                writable(fd);
            } else {
                readable(fd);
            }
        }
    }
}
