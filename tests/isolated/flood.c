/* Sends datagrams as fast as it can, for test_datagram_flood.py.
 *
 *   flood PORT COUNT SOCKETS SIZE
 *
 * to 127.0.0.1, from as many sockets in turn; the first eight bytes are the number of the datagram,
 * in the machine's order. Prints how many sendmmsg(2) took: all but what a netfilter rule refuses
 * to let pass (EPERM), which the rule counts. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 64, LARGEST = 2048, MOST = 64 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    static char data[BATCH][LARGEST];
    struct iovec pieces[BATCH];
    struct mmsghdr messages[BATCH] = {0};
    struct sockaddr_in address = {.sin_family = AF_INET};
    int sockets[MOST];
    if (argc != 5)
        return 2;
    uint64_t count = strtoull(argv[2], NULL, 10), made = 0, refused = 0;
    unsigned long used = strtoul(argv[3], NULL, 10), size = strtoul(argv[4], NULL, 10);
    if (used < 1 || used > MOST || size < sizeof(made) || size > LARGEST)
        return 2;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (unsigned long i = 0; i < used; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (sockets[i] < 0 || connect(sockets[i], (struct sockaddr *)&address, sizeof(address)) < 0)
            die("connect");
    }
    for (int i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){data[i], size};
        messages[i].msg_hdr.msg_iov = &pieces[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    for (unsigned long turn = 0; made < count; turn++) {
        unsigned int batch = count - made < BATCH ? (unsigned int)(count - made) : BATCH, done = 0;
        for (unsigned int i = 0; i < batch; i++, made++)
            memcpy(data[i], &made, sizeof(made));
        while (done < batch) {
            int sent = sendmmsg(sockets[turn % used], messages + done, batch - done, 0);
            if (sent > 0) {
                done += (unsigned int)sent;
            } else if (errno == EPERM) {
                done++;
                refused++;
            } else if (errno != EINTR && errno != ECONNREFUSED) {
                die("sendmmsg");
            }
        }
    }
    printf("%llu %llu\n", (unsigned long long)made, (unsigned long long)refused);
    return 0;
}
