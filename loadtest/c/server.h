/* What the servers have in common: a port, and for some a thread a connection. */
#pragma once
#include <pthread.h>

#include "process.h"

#define BACKLOG 4096

/* A socket that listens; flags: of the socket. */
static inline int listening(int port, int flags)
{
    struct sockaddr_in address = loopback(port);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, BACKLOG))
        die("listen");
    return listener;
}

/* Give each connection, as an integer, to a thread that calls `serve`; for ever. */
static inline void serve_in_threads(int port, size_t stack, void *(*serve)(void *peer))
{
    int listener = listening(port, 0);
    pthread_attr_t kind;

    pthread_attr_init(&kind);
    pthread_attr_setdetachstate(&kind, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&kind, stack);
    for (;;) {
        int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        pthread_t thread;

        if (peer < 0 && errno != ECONNABORTED)
            die("accept");
        if (peer >= 0 && (errno = pthread_create(&thread, &kind, serve, (void *)(intptr_t)peer)))
            die("pthread_create");
    }
}
