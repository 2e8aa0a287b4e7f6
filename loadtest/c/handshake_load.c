/* Load for a ledger of messages: codes over HTTP, then messages over HTTP or as lines (KEEP).
 *
 * usage: handshake_load PORT SECONDS keep CONNECTIONS DEPTH CODEPORT   lines, DEPTH under way on each
 *        handshake_load PORT SECONDS http CONNECTIONS DEPTH CODEPORT   keep-alive
 *        handshake_load PORT SECONDS once CONNECTIONS 1 CODEPORT       a connection a message
 *
 * Every connection has an id and a code of its own, got before the load begins. Messages are forms
 * of three fields or lines of three words, to 127.0.0.1, with 64 bytes of text that name the run,
 * the phase (w: warming up, m: measured), the connection and the number: what is in a table can be
 * counted afterwards. Every answer is looked at: 200 and its whole body, or OK and a number that
 * rises on its connection. The rest is what the harness expects; see echo_load.c.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#define NAME "handshake_load"
#define PATIENCE 20 /* seconds for an answer */
#include "latencies.h"

#define WARM 0.2 /* of SECONDS */
#define SPARE 90 /* seconds that all the rest may take */
#define EVENTS 1024
#define REGISTERING 200 /* at once */
#define DEEPEST 256
#define TEXT 64
#define ANSWERS (16 * 1024)

enum mode { KEEP, HTTP, ONCE };

struct connection {
    int fd, number, writes; /* writes: the loop waits for room */
    char code[64];
    uint64_t sent, got, seq;      /* messages; the last number */
    uint64_t begun[DEEPEST];      /* when each message under way was sent */
    char out[DEEPEST * 512], in[ANSWERS];
    size_t queued, gone, have;
};

static struct connection **all;
static int connections, loop, depth, code_port, message_port;
static enum mode mode;
static char phase;
static uint64_t under_way;

static void fault(const struct connection *c, const char *what)
{
    if (!wrong++)
        fprintf(stderr, NAME ": connection %d, after %llu messages: %s: %.80s\n", c->number,
                (unsigned long long)c->got, what, c->have ? c->in : "");
}

static void watch(struct connection *c, int op, int writes)
{
    struct epoll_event event = {.events = EPOLLIN | (writes ? EPOLLOUT : 0), .data.ptr = c};

    c->writes = writes;
    if (epoll_ctl(loop, op, c->fd, &event))
        die("epoll_ctl");
}

static void flush(struct connection *c)
{
    while (c->gone < c->queued) {
        ssize_t went = send(c->fd, c->out + c->gone, c->queued - c->gone, MSG_NOSIGNAL);

        if (went < 0) {
            if (errno != EAGAIN)
                fault(c, strerror(errno));
            break;
        }
        c->gone += went;
    }
    if (c->gone == c->queued)
        c->gone = c->queued = 0;
    if ((c->queued > 0) != c->writes && !wrong)
        watch(c, EPOLL_CTL_MOD, c->queued > 0);
}

static void queue(struct connection *c, const char *data, size_t size)
{
    if (c->gone) {
        memmove(c->out, c->out + c->gone, c->queued - c->gone);
        c->queued -= c->gone;
        c->gone = 0;
    }
    if (c->queued + size > sizeof c->out) {
        fault(c, "it does not read");
        return;
    }
    memcpy(c->out + c->queued, data, size);
    c->queued += size;
}

static void post(struct connection *c, const char *form, int last)
{
    char request[1024];
    int size = snprintf(request, sizeof request,
                        "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: handshake_load\r\n"
                        "Content-Type: application/x-www-form-urlencoded\r\n%s"
                        "Content-Length: %zu\r\n\r\n%s",
                        last ? "Connection: close\r\n" : "", strlen(form), form);

    queue(c, request, size);
}

/* One message more, TEXT bytes long. */
static void say(struct connection *c, uint64_t time)
{
    char text[TEXT + 1], whole[512];
    int pid = getpid(), size;

    size = snprintf(text, sizeof text, "%d %c %d %llu ", pid, phase, c->number,
                    (unsigned long long)c->sent);
    memset(text + size, 'x', TEXT - size);
    text[TEXT] = 0;
    if (mode == KEEP) {
        size = snprintf(whole, sizeof whole, "load-%d-%d %s %s\n", pid, c->number, c->code, text);
        queue(c, whole, size);
    } else {
        for (char *at = text; *at; at++)
            *at = *at == ' ' ? '+' : *at;
        snprintf(whole, sizeof whole, "client_uuid=load-%d-%d&server_uuid=%s&message=%s", pid,
                 c->number, c->code, text);
        post(c, whole, mode == ONCE);
    }
    c->begun[c->sent++ % DEEPEST] = time;
    under_way++;
}

static void reach(struct connection *c, int port)
{
    c->fd = dial(port, SOCK_NONBLOCK, 0);
    c->have = c->queued = c->gone = 0;
    watch(c, EPOLL_CTL_ADD, 1);
}

/* Bytes of the HTTP answer that begins at `at`; 0: it is not whole. *body: where its body is. */
static size_t answer(struct connection *c, char *at, char **body)
{
    char *end = strstr(at, "\r\n\r\n"), *length;

    if (!end)
        return 0;
    *body = end + 4;
    *end = 0;
    length = strcasestr(at, "\r\ncontent-length:");
    if (strncmp(at, "HTTP/1.1 200", 12) || !length)
        fault(c, "no HTTP/1.1 200 with its length");
    *end = '\r';
    if (wrong || *body + atoi(length + 17) > c->in + c->have)
        return 0;
    return *body + atoi(length + 17) - at;
}

/* Read once; take what is whole: a code, or answers to messages. How many those were. */
static int receive(struct connection *c)
{
    ssize_t size = recv(c->fd, c->in + c->have, sizeof c->in - 1 - c->have, 0);
    char *at = c->in, *body, *end;
    uint64_t before = c->got, time = now();

    if (size < 0 && errno == EAGAIN)
        return 0;
    if (size <= 0) {
        fault(c, size ? strerror(errno) : "closed");
        return 0;
    }
    c->have += size;
    c->in[c->have] = 0;
    while (at < c->in + c->have && !wrong) {
        if (!*c->code) {
            if (!(size = answer(c, at, &body)))
                break;
            snprintf(c->code, sizeof c->code, "%.*s", (int)(at + size - body), body);
            at += size;
            continue;
        }
        if (mode == KEEP) {
            if (!(end = strchr(at, '\n')))
                break;
            uint64_t seq = strtoull(at + 3, NULL, 10);
            if (strncmp(at, "OK ", 3) || seq <= c->seq)
                fault(c, "no OK with a higher number");
            c->seq = seq;
            at = end + 1;
        } else {
            if (!(size = answer(c, at, &body)))
                break;
            at += size;
        }
        took(time - c->begun[c->got++ % DEEPEST]);
        under_way--;
    }
    c->have -= at - c->in;
    memmove(c->in, at, c->have + 1);
    return c->got - before;
}

static void enrol(void)
{
    struct epoll_event events[EVENTS];
    int begun = 0, done = 0;
    uint64_t end = now() + SPARE / 2 * SECOND;

    while (done < connections && !wrong && now() < end) {
        for (; begun < connections && begun < done + REGISTERING; begun++) {
            char form[64];

            snprintf(form, sizeof form, "client_uuid=load-%d-%d", getpid(), begun);
            reach(all[begun], code_port);
            post(all[begun], form, 1);
        }
        for (int i = epoll_wait(loop, events, EVENTS, 100); i-- > 0 && !wrong;) {
            struct connection *c = events[i].data.ptr;

            if (events[i].events & EPOLLOUT)
                flush(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                receive(c);
            if (*c->code) {
                close(c->fd);
                done++;
            }
        }
    }
    if (done < connections && !wrong)
        fault(all[done], "no code");
}

static void open_all(void)
{
    for (int i = 0; i < connections; i++) {
        reach(all[i], message_port);
        if (mode == KEEP)
            queue(all[i], "KEEP\n", 5);
    }
}

static void run(double seconds)
{
    struct epoll_event events[EVENTS];
    uint64_t end = now() + seconds * SECOND;

    forget();
    for (int i = 0; i < connections && !wrong; i++) {
        uint64_t time = now();

        if (mode == ONCE)
            reach(all[i], message_port);
        for (int k = 0; k < depth; k++)
            say(all[i], time);
        if (!all[i]->writes)
            flush(all[i]);
    }
    while (under_way && !wrong) {
        int count = epoll_wait(loop, events, EVENTS, 100), over = now() >= end;

        if (now() > end + PATIENCE * SECOND)
            fault(all[0], "or on another connection: no answer");
        for (int i = 0; i < count && !wrong; i++) {
            struct connection *c = events[i].data.ptr;
            int answered = 0;

            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                answered = receive(c);
            if (answered && mode == ONCE) {
                close(c->fd);
                if (over)
                    continue;
                uint64_t time = now();
                reach(c, message_port);
                say(c, time);
                continue;
            }
            if (answered && !over)
                for (uint64_t time = now(); answered--;)
                    say(c, time);
            if (c->queued && (!c->writes || events[i].events & EPOLLOUT))
                flush(c);
            else if (!c->queued && c->writes)
                watch(c, EPOLL_CTL_MOD, 0);
        }
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: handshake_load PORT SECONDS keep|http|once CONNECTIONS DEPTH CODEPORT\n");
    return 2;
}

int main(int argc, char **argv)
{
    double seconds, spent;
    uint64_t started;

    if (argc != 7 || (strcmp(argv[3], "keep") && strcmp(argv[3], "http") && strcmp(argv[3], "once")))
        return usage();
    message_port = atoi(argv[1]);
    seconds = atof(argv[2]);
    mode = *argv[3] == 'k' ? KEEP : *argv[3] == 'h' ? HTTP : ONCE;
    connections = atoi(argv[4]);
    depth = atoi(argv[5]);
    code_port = atoi(argv[6]);
    if (seconds <= 0 || seconds > 3600 || connections < 1 || depth < 1 || depth > DEEPEST ||
        (mode == ONCE && depth > 1))
        return usage();
    end_with_parent();
    alarm(2 * seconds + SPARE + PATIENCE);
    allow_files();
    loop = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(connections, sizeof *all);
    if (loop < 0 || !all)
        die("epoll_create1 or calloc");
    for (int i = 0; i < connections; i++) {
        if (!(all[i] = calloc(1, sizeof **all)))
            die("calloc");
        all[i]->number = i;
    }
    enrol();
    if (mode != ONCE && !wrong)
        open_all();
    phase = 'w';
    run(seconds * WARM);
    if (wrong)
        return 1;
    if (!may_begin())
        return 1;
    phase = 'm';
    spent = cpu();
    started = now();
    run(seconds);
    tell(started, spent);
    hold();
    return 0;
}
