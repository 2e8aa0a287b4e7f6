/* What an echo can cost at best: one thread, one epoll loop, ASCII to upper case.
 *
 * usage: echo_server PORT        on 127.0.0.1, until killed
 *
 * DESCONEXION alone in a read closes. While an answer cannot be sent whole, its connection is not
 * read: the rest goes first. Ends with its parent.
 */
#define _GNU_SOURCE
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>

#define NAME "echo_server"
#include "server.h"

#define READ (64 * 1024)
#define EVENTS 1024
#define ACCEPTS 256 /* of one turn */

static const char word[] = "DESCONEXION";

/* What is still to be sent to a descriptor; `left` is 0 for nearly all, nearly always. */
struct rest {
    char *data;
    size_t at, left;
};

static struct rest *rests; /* by descriptor */
static int loop;

static void watch(int fd, uint32_t events, int how)
{
    struct epoll_event event = {.events = events, .data.fd = fd};

    if (epoll_ctl(loop, how, fd, &event))
        die("epoll_ctl");
}

static void leave(int fd)
{
    free(rests[fd].data);
    rests[fd] = (struct rest){0};
    close(fd);
}

static void accept_waiting(int listener)
{
    for (int i = 0; i < ACCEPTS; i++) {
        int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno != EAGAIN && errno != ECONNABORTED)
                die("accept");
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* How many of the bytes went; -1: the peer is gone. */
static ssize_t push(int fd, const char *data, size_t size)
{
    ssize_t went = send(fd, data, size, MSG_NOSIGNAL);

    return went < 0 && errno == EAGAIN ? 0 : went;
}

static void answer(int fd)
{
    static char data[READ];
    ssize_t size = recv(fd, data, sizeof data, 0), went;

    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0 || (size == sizeof word - 1 && !memcmp(data, word, size))) {
        leave(fd);
        return;
    }
    for (ssize_t i = 0; i < size; i++)
        data[i] -= data[i] >= 'a' && data[i] <= 'z' ? 'a' - 'A' : 0;
    went = push(fd, data, size);
    if (went < 0) {
        leave(fd);
    } else if (went < size) {
        struct rest *rest = &rests[fd];

        *rest = (struct rest){.data = malloc(size - went), .left = size - went};
        if (!rest->data)
            die("malloc");
        memcpy(rest->data, data + went, rest->left);
        watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
    }
}

static void go_on(int fd)
{
    struct rest *rest = &rests[fd];
    ssize_t went = push(fd, rest->data + rest->at, rest->left);

    if (went < 0) {
        leave(fd);
        return;
    }
    rest->at += went;
    rest->left -= went;
    if (!rest->left) {
        free(rest->data);
        *rest = (struct rest){0};
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
    }
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS];
    int listener;

    if (argc != 2) {
        fprintf(stderr, "usage: echo_server PORT\n");
        return 2;
    }
    end_with_parent();
    rests = calloc(allow_files(), sizeof *rests);
    loop = epoll_create1(EPOLL_CLOEXEC);
    if (!rests || loop < 0)
        die("epoll_create1 or calloc");
    listener = listening(atoi(argv[1]), SOCK_NONBLOCK);
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        int count = epoll_wait(loop, events, EVENTS, -1);

        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;

            if (fd == listener)
                accept_waiting(fd);
            else if (rests[fd].left)
                go_on(fd);
            else
                answer(fd);
        }
    }
}
