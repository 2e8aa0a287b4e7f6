/* What a chat can cost at best: one thread, one epoll loop, the lines of a turn joined and sent
 * once to everybody.
 *
 * usage: chat_server PORT        on 127.0.0.1, until killed
 *
 * Lines of 1 to 256 characters that are not blank go to all, others get "ERR Invalid message".
 * Who cannot take a line is waited for: it is a limit, not a server to have. Ends with its parent.
 */
#define _GNU_SOURCE
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>

#define NAME "chat_server"
#include "server.h"

#define READ (64 * 1024)
#define LONGEST 1024 /* bytes of a line */
#define EVENTS 512
#define ACCEPTS 256 /* of one turn */

struct begun { /* of a line, by descriptor */
    int size;
    char text[LONGEST];
};

static struct begun **begun;
static int *members, count; /* descriptors of all */
static char batch[EVENTS * (READ + LONGEST)];
static size_t batched;
static int loop;

static int valid(const char *text, size_t size)
{
    int characters = 0, blank = 1;

    for (size_t i = 0; i < size; i++) {
        unsigned char c = text[i];

        characters += (c & 0xC0) != 0x80;
        blank &= c <= ' ';
    }
    return !blank && characters <= 256;
}

/* Send all of it; what was cut by a peer that is gone does not matter. */
static void tell(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t went = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (went < 0 && errno == EAGAIN) {
            struct pollfd room = {.fd = fd, .events = POLLOUT};

            poll(&room, 1, 1000);
            continue;
        }
        if (went < 0)
            return;
        data += went;
        size -= went;
    }
}

static void leave(int fd)
{
    for (int i = 0; i < count; i++)
        if (members[i] == fd)
            members[i--] = members[--count];
    free(begun[fd]);
    begun[fd] = NULL;
    close(fd);
}

static void accept_waiting(int listener)
{
    for (int i = 0; i < ACCEPTS; i++) {
        int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

        if (fd < 0) {
            if (errno != EAGAIN && errno != ECONNABORTED)
                die("accept");
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (!(begun[fd] = calloc(1, sizeof *begun[fd])) ||
            epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event))
            die("accept");
        members[count++] = fd;
    }
}

static void receive(int fd)
{
    static char data[LONGEST + READ];
    struct begun *rest = begun[fd];
    char *at = data, *end, *lf;
    ssize_t got;

    memcpy(data, rest->text, rest->size);
    got = recv(fd, data + rest->size, READ, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        leave(fd);
        return;
    }
    end = data + rest->size + got;
    for (; (lf = memchr(at, '\n', end - at)); at = lf + 1) {
        if (valid(at, lf - at)) {
            memcpy(batch + batched, at, lf + 1 - at);
            batched += lf + 1 - at;
        } else {
            tell(fd, "ERR Invalid message\n", 20);
        }
    }
    rest->size = end - at < LONGEST ? end - at : 0;
    memcpy(rest->text, at, rest->size);
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    size_t files;
    int listener;

    if (argc != 2) {
        fprintf(stderr, "usage: chat_server PORT\n");
        return 2;
    }
    end_with_parent();
    files = allow_files();
    begun = calloc(files, sizeof *begun);
    members = calloc(files, sizeof *members);
    loop = epoll_create1(EPOLL_CLOEXEC);
    listener = listening(atoi(argv[1]), SOCK_NONBLOCK);
    event.data.fd = listener;
    if (!begun || !members || loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event))
        die("epoll_ctl or calloc");
    for (;;) {
        int some = epoll_wait(loop, events, EVENTS, -1);

        for (int i = 0; i < some; i++) {
            if (events[i].data.fd == listener)
                accept_waiting(listener);
            else
                receive(events[i].data.fd);
        }
        if (batched) {
            accept_waiting(listener);
            for (int i = 0; i < count; i++)
                tell(members[i], batch, batched);
        }
        batched = 0;
    }
}
