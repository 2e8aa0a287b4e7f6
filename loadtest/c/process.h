/* What every program here is: on 127.0.0.1, with as many descriptors as it may have. NAME is its
 * own, defined before.
 */
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_FILES (1 << 20) /* tables by descriptor must fit: some systems allow a billion */

static inline void die(const char *what)
{
    fprintf(stderr, NAME ": %s: %s\n", what, strerror(errno));
    exit(1);
}

static inline void end_with_parent(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* Raise the limit of descriptors as far as allowed: what it is now. */
static inline size_t allow_files(void)
{
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MOST_FILES ? files.rlim_max : MOST_FILES;
    setrlimit(RLIMIT_NOFILE, &files);
    return files.rlim_cur;
}

static inline struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}
