/* A client for datagram servers that is never what is measured: one thread, epoll(7), and as many
 * datagrams per system call as there are.
 *
 *   datagrams 127.0.0.1:port | /path  sockets  payload  seconds  window
 *       `sockets` connected sockets, `window` datagrams of payload bytes under way on each
 *       (a Unix server's queue holds net.unix.max_dgram_qlen + 1, 11 by default, from all of them
 *       together: who could not send waits in turn; a window beyond that lets nobody else send)
 *
 * Every byte that comes back is verified. A payload of 8 bytes or more is the number of the socket
 * and of the datagram, over and over, so that an answer to another peer is noticed, and one that
 * comes after the answer to a later datagram: that is an error. So is a datagram without an answer
 * within 200 ms: it is given up for lost, and another takes its place. Should the answer come after
 * all, it is late, which is no second error.
 *
 * Prints "warm" when it starts to count, then what `load` prints: operations, seconds, errors, the
 * latencies' 50th and 99th percentile in microseconds, and how many sockets got answers while it
 * counted. What the errors were goes to standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum { EVENTS = 256, BATCH = 64, SLOTS = 1 << 16, SOCKET_SHIFT = 40 };
enum { LARGEST = 8192, STRIDE = LARGEST + 64 }; /* + 64: not all in the same lines of the cache */
enum { MOST_IN_ONE = 65000 };                   /* bytes that the kernel cuts into datagrams */
enum { PLENTY = 256, FEW = 16 }; /* datagrams with the server; sockets with answers */
static const struct timespec NAP = {0, 50000};
static const double PATIENCE = 0.2, CHECK_EVERY = 0.02;

struct sent {
    uint64_t number;
    double since;
};

struct client {
    int fd, waiting;      /* in the queue of those that could not send */
    struct sent *sent;    /* without an answer, oldest first, from sent[first]; room: 2 windows */
    size_t first, under_way;
    uint64_t next, latest; /* to be sent; the highest answered */
    long served, owed;     /* owed: given up for lost, so that an answer may still come */
};

static union { struct sockaddr any; struct sockaddr_in inet; struct sockaddr_un local; } server;
static socklen_t server_length;
static int poller, cut_by_kernel;
static size_t size, window;
static struct client *all, **queue; /* a ring: who could not send is served in turn */
static size_t clients, queue_first, queued;
static struct client *watched; /* the head of the queue, while the kernel is asked about it */
static long operations, lost, disordered, late;
static long histogram[SLOTS]; /* microseconds */
static char outgoing[BATCH * LARGEST + 8], incoming[BATCH][STRIDE];
static struct mmsghdr to_send[BATCH], received[BATCH];
static struct iovec pieces[2][BATCH];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void wrong(const char *what) {
    fprintf(stderr, "datagrams: %s\n", what);
    exit(1);
}

static void watch(struct client *c, unsigned events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        die("epoll_ctl");
}

static void dial(struct client *c) {
    int much = 1 << 20, segment = (int)size;
    c->fd = socket(server.any.sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("socket");
    if (server.any.sa_family == AF_UNIX) { /* only the family: the kernel finds an abstract name */
        struct sockaddr_un own = {.sun_family = AF_UNIX};
        if (bind(c->fd, (struct sockaddr *)&own, sizeof(own.sun_family)) < 0)
            die("bind");
    }
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &much, sizeof(much));
    if (connect(c->fd, &server.any, server_length) < 0)
        die("connect");
    cut_by_kernel = server.any.sa_family == AF_INET && segment &&
                    !setsockopt(c->fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment));
    c->sent = calloc(2 * window, sizeof(*c->sent));
    c->next = (uint64_t)(c - all) << SOCKET_SHIFT;
    watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

static void fill(char *payload, uint64_t number) {
    size_t at = 0;
    if (size < sizeof(number))
        memset(payload, 'x', size);
    else
        for (; at < size; at += sizeof(number))
            memcpy(payload + at, &number, sizeof(number));
}

static int as_filled(const char *payload, uint64_t number) {
    static char expected[STRIDE];
    fill(expected, number);
    return !memcmp(payload, expected, size);
}

/* With UDP_SEGMENT a batch goes through the kernel as one packet until it comes to the server's
 * socket, which gets it as ordinary datagrams, one each. That is what makes this client cheaper
 * than a server which answers in batches. Unix sockets have nothing of the kind. */
static int transmit(struct client *c, size_t wanted) {
    if (!cut_by_kernel)
        return sendmmsg(c->fd, to_send, (unsigned)wanted, MSG_NOSIGNAL);
    return send(c->fd, outgoing, wanted * size, MSG_NOSIGNAL) < 0 ? -1 : (int)wanted;
}

/* Whether the window is full again; if not, the server's queue is. */
static int sends(struct client *c) {
    while (c->under_way < window) {
        size_t wanted = window - c->under_way < BATCH ? window - c->under_way : BATCH;
        if (cut_by_kernel && wanted * size > MOST_IN_ONE)
            wanted = MOST_IN_ONE / size;
        for (size_t i = 0; i < wanted; i++)
            fill(outgoing + i * size, c->next + i);
        double since = now();
        int sent = transmit(c, wanted);
        if (sent < 0 && errno != EAGAIN && errno != ENOBUFS)
            die("send");
        for (int i = 0; i < sent; i++) {
            if (c->first + c->under_way == 2 * window) {
                memmove(c->sent, c->sent + c->first, c->under_way * sizeof(*c->sent));
                c->first = 0;
            }
            c->sent[c->first + c->under_way++] = (struct sent){c->next++, since};
        }
        if (sent < (int)wanted)
            return 0;
    }
    return 1;
}

/* Fills the window, or queues up for it. All sockets send into the one queue of the server's, so
 * that none has to try while another waits. Only the first of those that wait asks for EPOLLOUT:
 * a Unix server that takes a datagram wakes everybody who does, at its own expense. */
static void refill(struct client *c) {
    if (c->waiting || c->under_way == window || (!queued && sends(c)))
        return;
    c->waiting = 1;
    queue[(queue_first + queued++) % clients] = c;
}

static void advance(void) {
    while (queued) {
        struct client *head = queue[queue_first];
        if (!sends(head)) {
            if (watched != head)
                watch(head, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
            watched = head;
            return;
        }
        if (watched == head)
            watch(head, EPOLLIN, EPOLL_CTL_MOD);
        watched = NULL;
        head->waiting = 0;
        queue_first = (queue_first + 1) % clients;
        queued--;
    }
}

static void answered(struct client *c, const char *payload, double at) {
    struct sent *oldest = c->sent + c->first;
    uint64_t number = c->under_way ? oldest->number : 0;
    size_t place = 0;
    if (size >= sizeof(number)) {
        memcpy(&number, payload, sizeof(number));
        if (number >> SOCKET_SHIFT != (uint64_t)(c - all) || number >= c->next)
            wrong("an answer to another peer, or to nothing that was sent");
        while (place < c->under_way && oldest[place].number != number)
            place++;
    }
    if (!as_filled(payload, number))
        wrong("other bytes came back");
    if (place == c->under_way) {
        if (!c->owed--)
            wrong("a second answer to the same datagram");
        late++;
        return;
    }
    long micros = (long)((at - oldest[place].since) * 1e6);
    histogram[micros < SLOTS ? micros : SLOTS - 1]++;
    operations++;
    c->served++;
    if (number < c->latest)
        disordered++;
    else
        c->latest = number;
    if (place)
        memmove(oldest + place, oldest + place + 1,
                (c->under_way - place - 1) * sizeof(*oldest));
    else
        c->first++;
    c->under_way--;
}

static void reads(struct client *c) {
    int count = recvmmsg(c->fd, received, BATCH, MSG_DONTWAIT, NULL);
    if (count < 0 && errno != EAGAIN)
        die("recvmmsg");
    double at = now();
    for (int i = 0; i < count; i++) {
        if (received[i].msg_len != size)
            wrong("an answer of another length");
        answered(c, incoming[i], at);
    }
    refill(c);
}

static void give_up(double before) {
    for (struct client *c = all; c < all + clients; c++) {
        while (c->under_way && c->sent[c->first].since < before) {
            c->first++;
            c->under_way--;
            c->owed++;
            lost++;
        }
        refill(c);
    }
}

static void turn(void) {
    static struct epoll_event events[EVENTS];
    static double checked;
    int ready = epoll_wait(poller, events, EVENTS, (int)(CHECK_EVERY * 1e3));
    for (int i = 0; i < ready; i++)
        if (events[i].events & ~(unsigned)EPOLLOUT)
            reads(events[i].data.ptr);
    double time = now();
    if (time >= checked + CHECK_EVERY) {
        checked = time;
        give_up(time - PATIENCE);
    }
    advance();
    /* Answers that are taken one by one cost most, and the server pays for every wake-up of who
     * sleeps in epoll_wait(2). So they are let gather while the server has work for longer. */
    if (ready < FEW && !queued && clients * window >= PLENTY)
        nanosleep(&NAP, NULL);
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

static void find(const char *where) {
    char host[64] = {0};
    const char *colon = strchr(where, ':');
    if (where[0] == '/') {
        server.local.sun_family = AF_UNIX;
        strncpy(server.local.sun_path, where, sizeof(server.local.sun_path) - 1);
        server_length = sizeof(server.local);
        return;
    }
    if (!colon || colon - where >= (long)sizeof(host))
        exit(2);
    memcpy(host, where, (size_t)(colon - where));
    server.inet.sin_family = AF_INET;
    server.inet.sin_port = htons((unsigned short)atoi(colon + 1));
    inet_pton(AF_INET, host, &server.inet.sin_addr);
    server_length = sizeof(server.inet);
}

int main(int count, char **arguments) {
    struct rlimit files;
    if (count != 6)
        return 2;
    find(arguments[1]);
    clients = (size_t)atol(arguments[2]);
    size = (size_t)atol(arguments[3]);
    double seconds = atof(arguments[4]);
    window = (size_t)atol(arguments[5]);
    if (!clients || !window || size > LARGEST)
        return 2;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 0; i < BATCH; i++) {
        pieces[0][i] = (struct iovec){outgoing + (size_t)i * size, size};
        pieces[1][i] = (struct iovec){incoming[i], STRIDE};
        to_send[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[0][i], .msg_iovlen = 1};
        received[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[1][i], .msg_iovlen = 1};
    }
    prctl(PR_SET_TIMERSLACK, 1000UL); /* nanoseconds; 50,000 by default, as much as the nap */
    poller = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(clients, sizeof(*all));
    queue = calloc(clients, sizeof(struct client *));
    for (size_t i = 0; i < clients; i++)
        dial(&all[i]);
    for (size_t i = 0; i < clients; i++)
        refill(&all[i]);
    double start = now(), end = start + seconds;
    double warm = start + seconds * 0.2; /* what came before is not counted, but for the errors */
    int warming = 1;
    while (now() < end) {
        turn();
        if (warming && now() >= warm) {
            warming = 0;
            operations = 0;
            memset(histogram, 0, sizeof(histogram));
            for (size_t i = 0; i < clients; i++)
                all[i].served = 0;
            printf("warm\n");
            fflush(stdout);
            start = now();
        }
    }
    double took = now() - start;
    int served = 0;
    for (size_t i = 0; i < clients; i++)
        served += all[i].served > 0;
    if (lost || disordered)
        fprintf(stderr, "datagrams: %ld lost, %ld of them late; %ld out of order\n", lost, late,
                disordered);
    printf("%ld %.6f %ld %.0f %.0f %d\n", operations, took, lost + disordered, percentile(0.5),
           percentile(0.99), served);
    return 0;
}
