/* Load for an echo that answers in upper case; every byte of every answer is compared.
 *
 * usage: echo_load PORT SECONDS ping CONNECTIONS SIZE DEPTH    DEPTH messages under way on each
 *        echo_load PORT SECONDS rate CONNECTIONS SIZE RATE     RATE messages a second over all
 *        echo_load PORT SECONDS once CONNECTIONS SIZE          connect, one message, close
 *        echo_load PORT SECONDS idle CONNECTIONS SIZE          one message each, then silence
 *
 * Messages are lines of SIZE bytes, to 127.0.0.1. It keeps to what the harness expects of every
 * generator:
 *
 *   1. It warms up (connections open and answered, a share of SECONDS of load) until nothing is
 *      under way, prints "ready" and waits for a line on standard input.
 *   2. It measures for SECONDS, waits until all is answered, and prints one line of JSON:
 *      {"ops", "seconds", "p50_us", "p99_us", "wrong", "cpu"}. Nothing is under way then either,
 *      so what the server spent in between belongs to these operations and to nothing else.
 *   3. It holds its connections until the end of standard input.
 *
 * Latency counts from the moment a message was sent; with `rate` from the moment it was due, so
 * that a server which stops for a while is not excused from what it kept waiting; with `once` and
 * `idle` from before the connect. The first wrong answer is told on standard error and ends the
 * load. Exit status: 0 with a line of JSON, 1 where it cannot go on, 2 wrong usage.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#define NAME "echo_load"
#define PATIENCE 10 /* seconds for an answer */
#include "latencies.h"

#define WARM 0.2             /* of SECONDS */
#define WARM_IDLE 100        /* connections, with `idle` */
#define SPARE 60             /* seconds that all the rest may take */
#define EVENTS 1024
#define READ (256 * 1024)
#define PATTERN (256 * 1024) /* bytes, about, until a connection begins again */
#define MESSAGES 251         /* of a pattern, at most */

struct connection {
    int fd, number;
    uint64_t sent, got; /* bytes */
    size_t sends, gets; /* the same as places in the pattern */
    uint64_t first;     /* message of this run */
    uint64_t due;       /* messages by now, with `rate` */
    uint64_t *begun;    /* when each message under way was sent */
};

static struct connection *all;
static int port, connections, loop;
static size_t size;
static uint64_t depth = 1, rate; /* rate 0: a closed loop */

/* The pattern twice, so that each piece of it lies in one stretch; and its answer. */
static char *text, *answer;
static size_t period;

static uint64_t started;   /* this run */
static uint64_t under_way; /* bytes sent and not answered */

static void fault(const struct connection *c, const char *what)
{
    if (!wrong++)
        fprintf(stderr, NAME ": connection %d, after %llu right bytes: %s\n", c->number,
                (unsigned long long)c->got, what);
}

/* Lines of letters, digits and blanks, each another one: a lost or exchanged byte shows. */
static void compose(void)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789    ";
    size_t messages = PATTERN / size > MESSAGES ? MESSAGES : PATTERN / size;

    period = (messages < 3 ? 3 : messages) * size;
    text = malloc(2 * period);
    answer = malloc(2 * period);
    if (!text || !answer)
        die("malloc");
    for (size_t i = 0; i < period; i++)
        text[i] = i % size == size - 1 ? '\n' : letters[random() % (sizeof letters - 1)];
    memcpy(text + period, text, period);
    for (size_t i = 0; i < 2 * period; i++)
        answer[i] = text[i] >= 'a' && text[i] <= 'z' ? text[i] - 'a' + 'A' : text[i];
}

static uint64_t sent_at(const struct connection *c, uint64_t message)
{
    if (rate) /* it was due then */
        return started + ((message - c->first) * connections + c->number) * SECOND / rate;
    return c->begun[message % depth];
}

/* Send what is missing up to `limit` bytes in all, as far as the socket takes it. */
static void fill(struct connection *c, uint64_t limit)
{
    while (c->sent < limit && !wrong) {
        size_t want = limit - c->sent < period ? limit - c->sent : period;
        uint64_t time = rate ? 0 : now();
        ssize_t went = send(c->fd, text + c->sends, want, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (went < 0) {
            if (errno != EAGAIN)
                fault(c, strerror(errno));
            return;
        }
        for (uint64_t m = (c->sent + size - 1) / size; !rate && m * size < c->sent + went; m++)
            c->begun[m % depth] = time;
        c->sent += went;
        c->sends = (c->sends + went) % period;
        under_way += went;
        if ((size_t)went < want)
            return;
    }
}

/* Read once, compare, and count the messages that are whole now. */
static void receive(struct connection *c, int flags)
{
    static char data[READ];
    ssize_t left = recv(c->fd, data, sizeof data, flags);
    uint64_t message = c->got / size;
    const char *at = data;

    if (left < 0 && errno == EAGAIN && flags & MSG_DONTWAIT)
        return;
    if (left <= 0) {
        fault(c, !left ? "closed" : errno == EAGAIN ? "no answer" : strerror(errno));
        return;
    }
    if ((uint64_t)left > c->sent - c->got) {
        fault(c, "more bytes than were sent");
        return;
    }
    while (left) {
        size_t piece = (size_t)left < period ? (size_t)left : period;

        if (memcmp(at, answer + c->gets, piece)) {
            fault(c, "the answer is not what was sent, in upper case");
            return;
        }
        c->got += piece;
        c->gets = (c->gets + piece) % period;
        under_way -= piece;
        at += piece;
        left -= piece;
    }
    for (uint64_t time = now(); message < c->got / size; message++)
        took(time - sent_at(c, message));
}

static void watch(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

    if (epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl");
}

/* Connect and send the first message; each connection begins elsewhere in the pattern. */
static void begin(struct connection *c)
{
    static size_t place;
    uint64_t time = now();

    c->fd = dial(port, 0, 0);
    c->sent = c->got = 0;
    c->sends = c->gets = place;
    place = (place + size) % period;
    fill(c, size);
    c->begun[0] = time;
}

/* Open `count` connections, each once it knows that the one before it is served. */
static void open_all(int count)
{
    for (int i = 0; i < count && !wrong; i++) {
        begin(&all[i]);
        while (all[i].got < size && !wrong) {
            receive(&all[i], 0);
            fill(&all[i], size);
        }
    }
}

static void close_all(int count)
{
    for (int i = 0; i < count; i++)
        close(all[i].fd);
}

static int late(uint64_t end)
{
    if (now() < end + PATIENCE * SECOND)
        return 0;
    fault(&all[0], "or on another connection: no answer");
    return 1;
}

/* A closed loop: the answer to one message lets the next one go. */
static void ping(uint64_t end)
{
    struct epoll_event events[EVENTS];

    for (int i = 0; i < connections; i++)
        fill(&all[i], all[i].got + depth * size);
    while (under_way && !wrong && !late(end)) {
        int count = epoll_wait(loop, events, EVENTS, 100), over = now() >= end;

        for (int i = 0; i < count && !wrong; i++) {
            struct connection *c = events[i].data.ptr;

            receive(c, MSG_DONTWAIT);
            fill(c, (over ? (c->sent + size - 1) / size : c->got / size + depth) * size);
        }
    }
}

/* An open loop: message after message when it is due, whatever was answered. It spins. */
static void keep_rate(uint64_t end)
{
    struct epoll_event events[EVENTS];
    uint64_t next = 0, total = (end - started) * rate / SECOND;

    for (int i = 0; i < connections; i++)
        all[i].first = all[i].due = all[i].got / size;
    while ((next < total || under_way) && !wrong && !late(end)) {
        for (uint64_t time = now(); next < total && time >= started + next * SECOND / rate; next++) {
            struct connection *c = &all[next % connections];

            fill(c, ++c->due * size);
        }
        for (int i = epoll_wait(loop, events, EVENTS, 0); i-- > 0;) {
            struct connection *c = events[i].data.ptr;

            receive(c, MSG_DONTWAIT);
            fill(c, c->due * size);
        }
    }
}

static void once(uint64_t end)
{
    struct epoll_event events[EVENTS];
    int left = connections;

    for (int i = 0; i < connections; i++) {
        begin(&all[i]);
        watch(&all[i]);
    }
    while (left && !wrong && !late(end)) {
        int count = epoll_wait(loop, events, EVENTS, 100), over = now() >= end;

        for (int i = 0; i < count && !wrong; i++) {
            struct connection *c = events[i].data.ptr;

            receive(c, MSG_DONTWAIT);
            fill(c, size);
            if (c->got < size)
                continue;
            close(c->fd);
            if (over) {
                left--;
            } else {
                begin(c);
                watch(c);
            }
        }
    }
}

static void run(const char *mode, double seconds, int warm)
{
    uint64_t end;

    forget();
    started = now();
    end = started + seconds * SECOND;
    if (wrong)
        return;
    if (!strcmp(mode, "once")) {
        once(end);
    } else if (!strcmp(mode, "idle")) {
        open_all(warm ? WARM_IDLE < connections ? WARM_IDLE : connections : connections);
        if (warm)
            close_all(WARM_IDLE < connections ? WARM_IDLE : connections);
    } else if (rate) {
        keep_rate(end);
    } else {
        ping(end);
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: echo_load PORT SECONDS ping CONNECTIONS SIZE DEPTH\n"
                    "       echo_load PORT SECONDS rate CONNECTIONS SIZE RATE\n"
                    "       echo_load PORT SECONDS once|idle CONNECTIONS SIZE\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 3 ? argv[3] : "";
    int keeps = !strcmp(mode, "ping") || !strcmp(mode, "rate");
    double seconds, spent;

    if (argc != 6 + keeps || (!keeps && strcmp(mode, "once") && strcmp(mode, "idle")))
        return usage();
    port = atoi(argv[1]);
    seconds = atof(argv[2]);
    connections = atoi(argv[4]);
    size = atoi(argv[5]);
    if (keeps)
        *(*mode == 'r' ? &rate : &depth) = atoi(argv[6]);
    if (seconds <= 0 || seconds > 3600 || connections < 1 || size < 1 || size > 1 << 20 ||
        depth < 1 || (*mode == 'r' && !rate))
        return usage();
    end_with_parent();
    alarm(2 * seconds + SPARE);
    allow_files();
    loop = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(connections, sizeof *all);
    if (loop < 0 || !all)
        die("epoll_create1 or calloc");
    for (int i = 0; i < connections; i++) {
        all[i].number = i;
        if (!(all[i].begun = calloc(depth, sizeof *all[i].begun)))
            die("calloc");
    }
    compose();
    if (keeps) {
        open_all(connections);
        for (int i = 0; i < connections && !wrong; i++)
            watch(&all[i]);
    }
    run(mode, seconds * WARM, 1);
    if (!may_begin())
        return 1;
    spent = cpu();
    run(mode, seconds, 0);
    tell(started, spent);
    hold();
    return 0;
}
