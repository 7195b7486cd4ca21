/* Preloaded by test_failures.py: makes accept4(), recvfrom(), recvmsg() and recvmmsg() fail as a
 * file says.
 *
 * The file named by SHIM holds "<errno> <times>"; each failure counts it down. recvmmsg() has a
 * file of its own, SHIM_RECVMMSG, besides: with EPERM or ENOSYS a filter refuses it and no other.
 * SHIM_EPOLL is for epoll_ctl() of what a multiplexing loop polls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static int injected_by(const char *variable)
{
    const char *name = getenv(variable);
    int error = 0, times = 0;
    FILE *file = name ? fopen(name, "r+") : NULL;
    if (!file)
        return 0;
    if (fscanf(file, "%d %d", &error, &times) != 2 || times <= 0)
        error = 0;
    else {
        rewind(file);
        fprintf(file, "%d %d      \n", error, times - 1);
    }
    fclose(file);
    return error;
}

static int injected(void)
{
    return injected_by("SHIM");
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    static int (*real)(int, struct sockaddr *, socklen_t *, int);
    int error = injected();
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "accept4");
    return real(fd, address, length, flags);
}

ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, struct sockaddr *address,
                 socklen_t *length)
{
    static ssize_t (*real)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
    int error = injected();
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "recvfrom");
    return real(fd, buffer, size, flags, address, length);
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, struct msghdr *, int);
    int error = injected();
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "recvmsg");
    return real(fd, message, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    static int (*real)(int, struct mmsghdr *, unsigned, int, struct timespec *);
    int error = injected_by("SHIM_RECVMMSG");
    if (error) {
        errno = error;
        return -1;
    }
    error = injected();
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "recvmmsg");
    return real(fd, messages, count, flags, timeout);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    int error = 0;
    if (event && event->data.u64 == UINT32_MAX) /* LOOP in _tasks.pxd */
        error = injected_by("SHIM_EPOLL");
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_ctl");
    return real(epoll, operation, fd, event);
}
