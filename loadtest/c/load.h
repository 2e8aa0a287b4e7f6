/* What the generators have in common: clocks, connections, and the talk with the harness.
 *
 * NAME and PATIENCE, the seconds that an answer may take, are each generator's own, defined before.
 */
#pragma once
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "process.h"

#define SECOND 1000000000ull /* all times are in nanoseconds */
#define SOURCES 250          /* addresses to connect from: the ports of one would run out */

static uint64_t wrong; /* answers: the first one is told, and ends the load */

static inline uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* Seconds of CPU that this process has spent. */
static inline double cpu(void)
{
    struct rusage used;

    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* A connection; flags: of the socket. With SOCK_NONBLOCK it may not be there yet, without it no
 * call on it takes longer than PATIENCE. buffer: bytes to receive into; 0: as the kernel likes. */
static inline int dial(int port, int flags, int buffer)
{
    static atomic_uint calls;
    struct timeval patience = {.tv_sec = PATIENCE};
    struct sockaddr_in source = {.sin_family = AF_INET}, server = loopback(port);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    if (fd < 0)
        die("socket");
    source.sin_addr.s_addr = htonl((127 << 24) + (1 << 16) + 1 + calls++ % SOURCES);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (buffer)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (bind(fd, (void *)&source, sizeof source))
        die("bind");
    if (connect(fd, (void *)&server, sizeof server) &&
        !(flags & SOCK_NONBLOCK && errno == EINPROGRESS))
        die("connect");
    return fd;
}

/* Say that all is warm, and wait for the word to begin; false: it will not come. */
static inline bool may_begin(void)
{
    char line[16];

    puts("ready");
    fflush(stdout);
    return read(0, line, sizeof line) > 0;
}

/* What was printed is all: hold the connections until nobody wants them any more. */
static inline void hold(void)
{
    char line[16];

    fflush(stdout);
    while (read(0, line, sizeof line) > 0)
        continue;
}
