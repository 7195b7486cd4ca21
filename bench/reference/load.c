/* A client that is never what is measured: one thread, epoll(7).
 *
 *   load once  127.0.0.1:port | /path  concurrent  payload  seconds
 *       a connection per request: connect, send payload bytes, read them back and the end
 *   load echo  ...                     connections payload  seconds  depth
 *       lines of payload bytes on lasting connections, depth of them under way on each
 *   load http  ...                     connections reply    seconds
 *       GET / on lasting connections; every reply has `reply` bytes
 *   load httpclose ...                 concurrent  reply    seconds
 *       GET /, a connection per request
 *   load open  ...                     connections 0        seconds
 *       connect, exchange a line on each, hold them until standard input ends
 *
 * Lasting connections exchange one round before any of them counts, so that a server which puts off
 * accepting is not measured with fewer connections than another.
 *
 * Prints: operations, seconds, errors, the latencies' 50th and 99th percentile in microseconds, and
 * how many of the lasting connections were served at all while it counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, CHUNK = 1 << 18, SLOTS = 1 << 16, AT_A_TIME = 128, OPENING_SECONDS = 60 };

struct client {
    int fd, waits_to_send;
    size_t unsent, unread; /* bytes of what is under way */
    double since;
    size_t offset; /* in the payload, of the next byte to come */
    long served;   /* rounds */
};

static union { struct sockaddr any; struct sockaddr_in inet; struct sockaddr_un local; } server;
static socklen_t server_length;
static int poller, per_request, http, failures_left = 1000, opening, opened;
static size_t request_size, reply_size, depth = 1;
static char *request;
static long operations, errors;
static long histogram[SLOTS]; /* microseconds */

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct client *c, unsigned events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void begin(struct client *c) {
    c->unsent = depth * request_size;
    c->unread = depth * reply_size;
    c->offset = 0;
    c->since = now();
}

static void failed(struct client *c, const char *what) {
    errors++;
    if (errors < 4)
        fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    if (--failures_left <= 0)
        exit(1);
    (void)c;
}

static void sends(struct client *c);

static void dial(struct client *c) {
    int one = 1;
    c->fd = socket(server.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    if (server.any.sa_family == AF_INET)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    begin(c);
    while (connect(c->fd, &server.any, server_length) < 0) {
        if (errno == EINPROGRESS)
            break;
        if (errno != EAGAIN) /* a Unix listener whose backlog is full */
            die("connect");
        struct timespec moment = {0, 100000};
        nanosleep(&moment, NULL);
    }
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
    c->waits_to_send = 1;
    sends(c); /* on loopback the connection is there already */
}

static void sends(struct client *c) {
    while (c->unsent) {
        size_t start = (depth * request_size - c->unsent) % request_size;
        size_t size = request_size - start;
        if (start == 0 && c->unsent >= request_size)
            size = c->unsent; /* the request is stored `depth` times in a row */
        ssize_t sent = send(c->fd, request + start, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN || errno == ENOTCONN) {
                if (!c->waits_to_send)
                    watch(c, EPOLLOUT, EPOLL_CTL_MOD);
                c->waits_to_send = 1;
                return;
            }
            failed(c, "send");
            c->unsent = 0;
            break;
        }
        c->unsent -= (size_t)sent;
    }
    if (c->waits_to_send)
        watch(c, EPOLLIN, EPOLL_CTL_MOD);
    c->waits_to_send = 0;
}

static void done(struct client *c) {
    long micros = (long)((now() - c->since) * 1e6);
    histogram[micros < SLOTS ? micros : SLOTS - 1]++;
    operations += (long)depth;
    c->served++;
}

static void reads(struct client *c) {
    static char chunk[CHUNK];
    for (;;) {
        ssize_t got = recv(c->fd, chunk, CHUNK, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0) {
            if (got < 0 || c->unread || !per_request)
                failed(c, got < 0 ? "recv" : "early end");
            else
                done(c);
            close(c->fd);
            dial(c);
            return;
        }
        if (!http) {
            for (size_t at = 0; at < (size_t)got;) {
                size_t left = request_size - c->offset % request_size;
                if (left > (size_t)got - at)
                    left = (size_t)got - at;
                if (memcmp(chunk + at, request + c->offset % request_size, left))
                    die("other bytes came back");
                c->offset += left;
                at += left;
            }
        }
        if ((size_t)got > c->unread) {
            fprintf(stderr, "load: %zd bytes too many\n", got - (ssize_t)c->unread);
            exit(1);
        }
        c->unread -= (size_t)got;
        if (!c->unread && !per_request) {
            done(c);
            if (opening) {
                opened++;
                return;
            }
            begin(c);
            sends(c);
            return;
        }
        if (got < CHUNK && !per_request)
            return;
    }
}

static double percentile(double part) {
    long total = 0, seen = 0;
    for (int i = 0; i < SLOTS; i++)
        total += histogram[i];
    for (int i = 0; i < SLOTS; i++)
        if ((double)(seen += histogram[i]) >= part * (double)total)
            return i;
    return 0;
}

static void hold(int count) {
    struct timeval limit = {60, 0};
    double start = now();
    int *fds = calloc((size_t)count, sizeof(int));
    char byte[2];
    int opened = 0, behind = 0;
    /* at most 128 of them without an answer, so that no backlog overflows */
    for (; behind < count; ) {
        if (opened < count && opened - behind < 128) {
            int fd = fds[opened++] = socket(server.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
            if (fd < 0 || connect(fd, &server.any, server_length) < 0)
                die("connect");
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
            if (send(fd, "x\n", 2, MSG_NOSIGNAL) != 2)
                die("send");
        } else {
            if (recv(fds[behind], byte, 2, MSG_WAITALL) != 2)
                die("recv");
            behind++;
        }
    }
    printf("%d %.6f 0 0 0\n", count, now() - start);
    fflush(stdout);
    while (read(0, byte, 1) > 0)
        ;
}

static void turn(void) {
    static struct epoll_event events[EVENTS];
    int ready = epoll_wait(poller, events, EVENTS, 100);
    for (int i = 0; i < ready; i++) {
        struct client *c = events[i].data.ptr;
        if (c->unsent)
            sends(c);
        else
            reads(c);
    }
}

int main(int count, char **arguments) {
    struct rlimit files;
    if (count < 6)
        return 2;
    const char *mode = arguments[1], *where = arguments[2];
    int clients = atoi(arguments[3]);
    size_t size = (size_t)atol(arguments[4]);
    double seconds = atof(arguments[5]);
    if (count > 6)
        depth = (size_t)atol(arguments[6]);
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (where[0] == '/') {
        server.local.sun_family = AF_UNIX;
        strncpy(server.local.sun_path, where, sizeof(server.local.sun_path) - 1);
        server_length = sizeof(server.local);
    } else {
        char host[64] = {0};
        const char *colon = strchr(where, ':');
        if (!colon || colon - where >= 64)
            return 2;
        memcpy(host, where, (size_t)(colon - where));
        server.inet.sin_family = AF_INET;
        server.inet.sin_port = htons((unsigned short)atoi(colon + 1));
        inet_pton(AF_INET, host, &server.inet.sin_addr);
        server_length = sizeof(server.inet);
    }
    if (!strcmp(mode, "open")) {
        hold(clients);
        return 0;
    }
    http = !strncmp(mode, "http", 4);
    per_request = !strcmp(mode, "once") || !strcmp(mode, "httpclose");
    const char *get = per_request ? "GET / HTTP/1.0\r\nHost: bench\r\n\r\n"
                                  : "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
    reply_size = size;
    request_size = http ? strlen(get) : size;
    request = malloc(depth * request_size);
    for (size_t i = 0; i < depth; i++) {
        char *one = request + i * request_size;
        if (http) {
            memcpy(one, get, request_size);
        } else {
            memset(one, 'x', size);
            one[size - 1] = '\n';
        }
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct client *all = calloc((size_t)clients, sizeof(*all));
    opening = !per_request;
    double give_up = now() + OPENING_SECONDS;
    for (int i = 0; i < clients; i++) {
        dial(&all[i]);
        while (opening && i - opened >= AT_A_TIME && now() < give_up)
            turn();
    }
    while (opening && opened < clients) {
        if (now() >= give_up) {
            fprintf(stderr, "load: %d of %d connections were served\n", opened, clients);
            return 1;
        }
        turn();
    }
    for (int i = 0; i < clients && opening; i++) {
        begin(&all[i]);
        sends(&all[i]);
    }
    opening = 0;
    double start = now(), end = start + seconds;
    double warm = start + seconds * 0.2; /* what came before is not counted */
    int warming = 1;
    while (now() < end) {
        turn();
        if (warming && now() >= warm) {
            warming = 0;
            operations = 0;
            memset(histogram, 0, sizeof(histogram));
            for (int i = 0; i < clients; i++)
                all[i].served = 0;
            printf("warm\n");
            fflush(stdout);
            start = now();
        }
    }
    int served = 0;
    for (int i = 0; i < clients; i++)
        served += all[i].served > 0;
    printf("%ld %.6f %ld %.0f %.0f %d\n", operations, now() - start, errors, percentile(0.5),
           percentile(0.99), served);
    return 0;
}
