/* Load for a chat or a broker: lines of some to everybody, each checked at every receiver.
 *
 * usage: chat_load PORT SECONDS WIRES loop RECEIVERS SENDERS WINDOW         lines under way
 *        chat_load PORT SECONDS WIRES rate RECEIVERS SENDERS RATE           lines a second
 *        chat_load PORT SECONDS WIRES stuck RECEIVERS SENDERS WINDOW STUCK MB
 *        chat_load PORT SECONDS WIRES flood RECEIVERS ECHO                  2-byte lines of one
 *
 * WIRES: line, irc, nats, redis, mqtt; or several as line,irc:PORT (PORT where it is not the
 * first), so that receivers and senders take turns. On `line` the senders are receivers, elsewhere
 * they are connections of their own; on `irc` receivers and senders join #main.
 *
 * Lines are LENGTH bytes that hold a number and a time. Each receiver must get every line once, whole
 * and in the order of all others, or there is a wrong answer. Operations are lines delivered. The
 * latency of a delivery counts from the time in the line: when it was sent, or with a rate when it
 * was due. With `flood`, operations are answers of the echo on port ECHO, asked one by one, and
 * the latency is theirs.
 *
 * With `stuck`, STUCK connections that never read are there besides, with small buffers. They may
 * be cut, the others must not notice. It ends when MB were said, not after SECONDS.
 *
 * It keeps to what the harness expects: warm up, "ready", wait for a line on standard input,
 * measure until all is delivered, one line of JSON, hold the connections until standard input ends.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>

#define NAME "chat_load"
#define PATIENCE 10 /* seconds for a line to reach everybody */
#include "latencies.h"

#define LENGTH 64            /* bytes of a line, without its ending */
#define LONG 250             /* with `stuck` */
#define WARM 0.2             /* of SECONDS */
#define SPARE 100            /* seconds that all the rest may take */
#define SMALL 4096           /* bytes that the kernel may hold for one that never reads */
#define QUIET 0.15           /* seconds of silence after all have joined */
#define EVENTS 512
#define READ (256 * 1024)
#define UNDER_WAY (1 << 17) /* lines; a power of two */
#define PINGS 1000
#define FLOOD (64 * 1024) /* bytes of a write */

enum wire { LINES, IRC, NATS, REDIS, MQTT };
static const char *names[] = {"line", "irc", "nats", "redis", "mqtt"};

struct connection {
    int fd, number, receives, stuck;
    enum wire wire;
    uint64_t order, got; /* digest of the lines it got, and how many */
    int left;            /* bytes of a line that is cut */
    char rest[LONG];
    char *out; /* what its socket did not take */
    size_t queued;
};

static struct connection *all;
static int total, receivers, senders, loop, stuck;
static struct { enum wire wire; int port; } wires[4];
static int kinds;
static uint64_t window, rate, most; /* bytes to say; 0: as many as in SECONDS */
static struct connection *speaking[256];

static int length = LENGTH;
static char fill[LONG];
static uint32_t sent, done;
static uint32_t reached[UNDER_WAY];

static void fault(const struct connection *c, const char *what)
{
    if (!wrong++)
        fprintf(stderr, NAME ": connection %d, after %llu right lines: %s\n", c->number,
                (unsigned long long)c->got, what);
}

static void watch(struct connection *c, uint32_t events, int how)
{
    struct epoll_event event = {.events = events, .data.ptr = c};

    if (epoll_ctl(loop, how, c->fd, &event))
        die("epoll_ctl");
}

/* Send what waits, as far as the socket takes it. */
static void push(struct connection *c)
{
    size_t went = 0;

    while (went < c->queued) {
        ssize_t some = send(c->fd, c->out + went, c->queued - went, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (some < 0) {
            if (errno != EAGAIN)
                fault(c, strerror(errno));
            break;
        }
        went += some;
    }
    memmove(c->out, c->out + went, c->queued - went);
    c->queued -= went;
    watch(c, c->queued ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
}

static void say(struct connection *c, uint64_t time)
{
    char head[64];
    int size;

    if (!(c->out = realloc(c->out, c->queued + length + 128)))
        die("realloc");
    switch (c->wire) {
    case IRC:
        size = sprintf(head, "PRIVMSG #main :");
        break;
    case NATS:
        size = sprintf(head, "PUB main %d\r\n", length);
        break;
    case REDIS:
        size = sprintf(head, "PUBLISH main ");
        break;
    case MQTT:
        size = 8;
        memcpy(head, (char[]){0x30, (char)(length + 6), 0, 4, 'm', 'a', 'i', 'n'}, size);
        break;
    default:
        size = 0;
    }
    memcpy(c->out + c->queued, head, size);
    c->queued += size;
    size = sprintf(head, "{%08x%016llx", sent++, (unsigned long long)time);
    memcpy(c->out + c->queued, head, size);
    memcpy(c->out + c->queued + size, fill, length - size);
    c->queued += length;
    if (c->wire == LINES)
        c->out[c->queued++] = '\n';
    else if (c->wire != MQTT)
        c->out[c->queued++] = '\r', c->out[c->queued++] = '\n';
}

static uint64_t hexadecimal(const char *at, int digits)
{
    uint64_t value = 0;

    while (digits--) {
        value = value * 16 + (*at <= '9' ? *at - '0' : *at - 'a' + 10);
        at++;
    }
    return value;
}

/* Read once, check and count the lines. */
static void receive(struct connection *c)
{
    static char data[READ + LONG];
    char *at = data, *end, *start;
    int alone = c->wire == LINES && kinds == 1; /* nobody there has a name */
    ssize_t got;
    uint64_t time;

    memcpy(data, c->rest, c->left);
    got = recv(c->fd, data + c->left, READ, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (c->stuck)
            watch(c, 0, EPOLL_CTL_DEL);
        else
            fault(c, got ? strerror(errno) : "closed");
        return;
    }
    if (!c->receives) /* a sender that only hears pings and its own */
        return;
    time = now();
    end = data + c->left + got;
    c->left = 0;
    while (at < end && (start = memchr(at, '{', end - at))) {
        uint32_t line;

        if (alone && start > at + (c->got != 0)) {
            fault(c, "something stands between two lines");
            return;
        }
        if (end - start < length) {
            c->left = end - start;
            memcpy(c->rest, start, c->left);
            return;
        }
        line = hexadecimal(start + 1, 8);
        if (memcmp(start + 25, fill, length - 25) || line >= sent) {
            fault(c, "a line that was not sent so");
            return;
        }
        c->order = (c->order ^ line) * 1099511628211ull + 1;
        c->got++;
        took(time - hexadecimal(start + 9, 16));
        if (++reached[line % UNDER_WAY] == (uint32_t)receivers) {
            reached[line % UNDER_WAY] = 0;
            done++;
        }
        at = start + length;
    }
    if (alone && at < end && (*at != '\n' || at + 1 < end))
        fault(c, "something stands between two lines");
}

static void put(int fd, const char *text, size_t size)
{
    if (send(fd, text, size, MSG_NOSIGNAL) != (ssize_t)size)
        die("send");
}

/* Read until one of the words comes (a ping of IRC is answered meanwhile). */
static void await(int fd, const char *word, const char *or)
{
    static char data[1 << 20];
    size_t size = 0, seen = 0;

    for (;;) {
        ssize_t got = recv(fd, data + size, sizeof data - size - 1, 0);
        char *ping, *end;

        if (got <= 0)
            die(word);
        size += got;
        data[size] = 0;
        while ((ping = strstr(data + seen, "PING ")) && (end = strpbrk(ping, "\r\n"))) {
            ping[1] = 'O';
            if (*word == ' ') {
                put(fd, ping, end - ping);
                put(fd, "\r\n", 2);
            }
            seen = end - data;
        }
        if (strstr(data, word) || (or && strstr(data, or)))
            return;
        if (size > sizeof data / 2) {
            memmove(data, data + size - 100, 100);
            size = 100;
            seen = 0;
        }
    }
}

/* Connect, join if it receives, and know that the server knows it. */
static void enter(struct connection *c, int receives, int kind)
{
    char text[200], id[16];
    int size;

    c->number = total++;
    c->receives = receives;
    c->wire = wires[kind % kinds].wire;
    c->fd = dial(wires[kind % kinds].port, 0, c->stuck ? SMALL : 0);
    switch (c->wire) {
    case IRC:
        size = sprintf(text, "NICK n%d\r\nUSER n%d 0 * :n\r\n", c->number, c->number);
        put(c->fd, text, size);
        await(c->fd, " 376 ", " 422 ");
        put(c->fd, "JOIN #main\r\n", 12);
        await(c->fd, " 366 ", NULL);
        break;
    case NATS:
        await(c->fd, "INFO", NULL);
        size = sprintf(text, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\n%sPING\r\n",
                       receives ? "SUB main 1\r\n" : "");
        put(c->fd, text, size);
        await(c->fd, "PONG", NULL);
        break;
    case REDIS:
        if (receives) {
            put(c->fd, "SUBSCRIBE main\r\n", 16);
            await(c->fd, ":1\r\n", NULL);
        }
        break;
    case MQTT:
        size = sprintf(id, "n%d", c->number);
        memcpy(text, (char[]){0x10, 12 + size, 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 1, 0, 0, size}, 14);
        memcpy(text + 14, id, size);
        put(c->fd, text, 14 + size);
        recv(c->fd, text, 4, MSG_WAITALL);
        if (receives) {
            put(c->fd, (char[]){(char)0x82, 9, 0, 1, 0, 4, 'm', 'a', 'i', 'n', 0}, 11);
            recv(c->fd, text, 5, MSG_WAITALL);
        }
        break;
    default:
        break;
    }
    if (!c->stuck)
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
}

/* Hear what comes until nothing does, and forget it: who joined, and the like. */
static void settle(void)
{
    struct epoll_event events[EVENTS];
    static char data[READ];
    uint64_t heard = now(), end = heard + PATIENCE * SECOND;

    while (now() < heard + QUIET * SECOND && now() < end) {
        int some = epoll_wait(loop, events, EVENTS, 20);

        for (int i = 0; i < some; i++) {
            struct connection *c = events[i].data.ptr;

            if (recv(c->fd, data, sizeof data, MSG_DONTWAIT) == 0)
                fault(c, "closed");
            heard = now();
        }
    }
}

static void serve(int wait)
{
    struct epoll_event events[EVENTS];
    int some = epoll_wait(loop, events, EVENTS, wait);

    for (int i = 0; i < some && !wrong; i++) {
        struct connection *c = events[i].data.ptr;

        if (events[i].events & EPOLLOUT)
            push(c);
        if (events[i].events & ~EPOLLOUT)
            receive(c);
    }
}

/* Whether all is delivered, or will not be any more. */
static int over(uint64_t end)
{
    if (done == sent || wrong)
        return 1;
    if (now() < end + PATIENCE * SECOND)
        return 0;
    fault(&all[0], "or another one: a line did not reach everybody");
    return 1;
}

static void run(uint64_t seconds, uint64_t bytes)
{
    uint64_t started = now(), end = started + seconds, next = 0, time;
    uint32_t first = sent;

    forget();
    while (((time = now()) < end || bytes) && !wrong) {
        if (bytes && (uint64_t)(sent - first) * length >= bytes) {
            end = time;
            break;
        }
        if (rate) {
            for (; started + next * SECOND / rate <= time && sent - done < UNDER_WAY / 2; next++) {
                struct connection *c = speaking[next % senders];

                say(c, started + next * SECOND / rate);
                push(c);
            }
        } else if (sent - done + window / 4 <= window) {
            for (uint64_t room = window - (sent - done); room--;)
                say(speaking[next++ % senders], time);
            for (int i = 0; i < senders; i++)
                if (speaking[i]->queued)
                    push(speaking[i]);
        }
        serve(rate ? 0 : 5);
    }
    while (!over(end))
        serve(20);
    for (int i = 0; i < total && !wrong; i++)
        if (all[i].receives && (all[i].order != all[0].order || all[i].got != all[0].got))
            fault(&all[i], "other lines than another receiver, or in another order");
}

/* Ask an echo, at most PINGS times a second, until `end`, in a process of its own: what keeps the receivers
 * busy must not count. The latencies are told through a pipe. */
static int probe(int port, uint64_t end)
{
    int ends[2];

    if (pipe(ends))
        die("pipe");
    switch (fork()) {
    case -1:
        die("fork");
        break;
    case 0: {
        int fd = dial(port, 0, 0);
        char answer[2];

        end_with_parent();
        for (uint64_t asked, time; (asked = now()) < end; usleep(1000000 / PINGS)) {
            put(fd, "p\n", 2);
            if (recv(fd, answer, 2, MSG_WAITALL) != 2 || memcmp(answer, "P\n", 2))
                die("echo");
            time = now() - asked;
            if (write(ends[1], &time, sizeof time) != sizeof time)
                _exit(1);
        }
        _exit(0);
    }
    }
    close(ends[1]);
    return ends[0];
}

/* One client floods, the others read; how long does an echo take meanwhile? */
static void flood(uint64_t seconds, int port)
{
    static char lines[FLOOD], data[READ];
    struct epoll_event events[EVENTS];
    uint64_t started = now(), end = started + seconds, said = 0, heard = 0, time;
    int told = probe(port, end), quiet = 0;

    for (int i = 0; i < FLOOD; i++)
        lines[i] = i % 2 ? '\n' : 'x';
    watch(&all[0], EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    while (((time = now()) < end || heard < said * receivers) && !wrong) {
        int some;

        if (time > end + PATIENCE * SECOND)
            fault(&all[0], "or another one: not every line came");
        if (time >= end && !quiet++)
            watch(&all[0], EPOLLIN, EPOLL_CTL_MOD);
        some = epoll_wait(loop, events, EVENTS, 10);
        for (int i = 0; i < some && !wrong; i++) {
            struct connection *c = events[i].data.ptr;
            ssize_t got;

            if (events[i].events & EPOLLOUT && time < end) {
                got = send(c->fd, lines + said % 2, FLOOD - 2, MSG_DONTWAIT | MSG_NOSIGNAL);
                said += got > 0 ? got : 0;
            }
            if (!(events[i].events & ~EPOLLOUT))
                continue;
            got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0) {
                fault(c, got ? strerror(errno) : "closed");
            } else {
                if (*data != (c->got % 2 ? '\n' : 'x') || (got > 1 && data[1] == *data) ||
                    (got > 2 && memcmp(data, data + 2, got - 2)))
                    fault(c, "a line that was not sent so");
                c->got += got;
                heard += got;
            }
        }
    }
    forget();
    while (read(told, &time, sizeof time) == sizeof time)
        took(time);
}

static int usage(void)
{
    fprintf(stderr, "usage: chat_load PORT SECONDS WIRES loop RECEIVERS SENDERS WINDOW\n"
                    "       chat_load PORT SECONDS WIRES rate RECEIVERS SENDERS RATE\n"
                    "       chat_load PORT SECONDS WIRES stuck RECEIVERS SENDERS WINDOW STUCK MB\n"
                    "       chat_load PORT SECONDS WIRES flood RECEIVERS ECHO\n");
    return 2;
}

/* line,irc:PORT */
static int understand(char *text, int port)
{
    for (char *one = strtok(text, ","); one; one = strtok(NULL, ",")) {
        char *colon = strchr(one, ':');
        int wire = 0;

        if (colon)
            *colon = 0;
        while (wire <= MQTT && strcmp(one, names[wire]))
            wire++;
        if (wire > MQTT || kinds == sizeof wires / sizeof *wires)
            return 0;
        wires[kinds].wire = wire;
        wires[kinds++].port = colon ? atoi(colon + 1) : port;
    }
    return kinds;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 4 ? argv[4] : "";
    int floods = !strcmp(mode, "flood"), sticks = !strcmp(mode, "stuck");
    double seconds, spent;
    uint64_t began;

    if ((strcmp(mode, "loop") && strcmp(mode, "rate") && !floods && !sticks) ||
        argc != 8 - floods + 2 * sticks || !understand(argv[3], atoi(argv[1])))
        return usage();
    seconds = atof(argv[2]);
    receivers = atoi(argv[5]);
    senders = floods ? 1 : atoi(argv[6]);
    if (!floods)
        *(*mode == 'r' ? &rate : &window) = atoi(argv[7]);
    if (sticks) {
        stuck = atoi(argv[8]);
        most = atoi(argv[9]) * 1000000ull;
        length = LONG;
    }
    if (seconds <= 0 || seconds > 3600 || receivers < 1 || senders < 1 || senders > 256 ||
        window > UNDER_WAY / 2 || (!floods && !window == !rate))
        return usage();
    end_with_parent();
    alarm(2 * seconds + SPARE);
    allow_files();
    loop = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(receivers + senders + stuck + 1, sizeof *all);
    if (loop < 0 || !all)
        die("epoll_create1 or calloc");
    memset(fill, 'w', sizeof fill);
    fill[length - 26] = '$'; /* the last byte of a line */
    for (int i = 0; i < receivers; i++)
        enter(&all[i], 1, i);
    for (int i = 0; i < senders; i++) {
        if (wires[i % kinds].wire == LINES) {
            speaking[i] = &all[i % receivers];
            while (speaking[i]->wire != LINES)
                speaking[i]++;
        } else {
            speaking[i] = &all[total];
            enter(speaking[i], 0, i);
        }
    }
    settle();
    if (!floods) {
        run(WARM * seconds * SECOND, 0);
        for (int i = 0; i < stuck; i++) {
            struct connection *c = &all[total];

            c->stuck = 1;
            enter(c, 0, i);
        }
    }
    if (!may_begin())
        return 1;
    spent = cpu();
    began = now();
    if (floods)
        flood(seconds * SECOND, atoi(argv[6]));
    else
        run(seconds * SECOND, most);
    tell(began, spent);
    hold();
    return 0;
}
