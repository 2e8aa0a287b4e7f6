/* Load for servers that store streams, or give them back, and the echo of one that has to go on.
 *
 * usage: bulk_load PORT SECONDS streams COUNT BYTES TALK WHERE ANSWER [ECHO_PORT]
 *                COUNT streams at once, of BYTES each, until all are answered
 *        bulk_load PORT SECONDS small COUNT BYTES TALK WHERE ANSWER
 *                for SECONDS, COUNT at a time: connect, BYTES, FIN, answer, close
 *        bulk_load PORT SECONDS idle COUNT BYTES TALK WHERE ANSWER
 *                COUNT streams that send BYTES and stay open
 *        bulk_load PORT SECONDS fetch COUNT BYTES TALK WHERE ANSWER [ECHO_PORT]
 *                for SECONDS, COUNT at a time: a GET of what was stored before, as `streams` do it
 *
 * All to 127.0.0.1. A stream is the same LINES numbered lines, over and over, up to BYTES. TALK is
 *
 *     raw    our FIN ends a stream, the server answers exactly ANSWER and a FIN; WHERE is nothing
 *     put    PUT of WHERE and a name, whose answer begins with ANSWER; `fetch` is a GET of it
 *     tus    tus 1.0: POST to WHERE, PATCH of what that answered, whose answer begins with ANSWER
 *
 * It keeps to what the harness expects of every generator:
 *
 *   1. It prints "ready" and waits for a line on standard input.
 *   2. It loads until all is answered and prints one line of JSON:
 *      {"ops", "bytes", "seconds", "p50_us", "p99_us", "wrong", "cpu"}; ops are streams.
 *   3. It holds what is open until the end of standard input.
 *
 * There is no warm-up: every stream counts, and is in the server's folder. Of what is got the length
 * is looked at; when the time was taken, one is got again and compared. Latency is that of a stream,
 * from before its connect to the end of its answer. With ECHO_PORT it is that of lines of 64 bytes,
 * one a millisecond whatever was answered, from the moment each was due until it is back in upper
 * case. The first wrong answer is told on standard error. Exit status: 0 with a line of JSON, 1 where
 * it cannot go on, 2 wrong usage.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/sendfile.h>

#define NAME "bulk_load"
#define PATIENCE 60 /* seconds for an answer: some sync gigabytes before it */
#include "load.h"

#define PACE (SECOND / 1000) /* between two lines of echo */
#define SPARE 300            /* seconds that everything may take */
#define STACK (128 * 1024)
#define READ (1024 * 1024)
#define ANSWER 4096 /* bytes of an answer that are kept */
#define LINE 64     /* bytes of a line of echo */
#define LINES 3907  /* of 256 bytes: a megabyte that fits no buffer evenly */

static int port, echo_port; /* 0: no echo is asked */
static int data;            /* a file in memory, with what is in `text` */
static char *text;
static int64_t period, bytes;
static const char *wanted, *where;
static bool put, tus;
static uint64_t deadline; /* for `small` and `fetch` */
static atomic_bool over;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of what follows */
static uint64_t *latencies, taken, room;

static bool fault(const char *what, const char *more)
{
    pthread_mutex_lock(&lock);
    if (!wrong++)
        fprintf(stderr, NAME ": %s: %s\n", what, more);
    pthread_mutex_unlock(&lock);
    return false;
}

static void took(uint64_t time)
{
    pthread_mutex_lock(&lock);
    if (taken == room && !(latencies = realloc(latencies, (room = 2 * room + 1024) * sizeof time)))
        die("realloc");
    latencies[taken++] = time;
    pthread_mutex_unlock(&lock);
}

static int ascending(const void *one, const void *other)
{
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

    return (a > b) - (a < b);
}

/* The latency in microseconds that `share` of all did not exceed. */
static double percentile(double share)
{
    return taken ? latencies[(uint64_t)(share * (taken - 1))] / 1e3 : 0;
}

static bool say(int fd, const char *form, ...)
{
    char head[2048];
    va_list given;
    int size;

    va_start(given, form);
    size = vsnprintf(head, sizeof head, form, given);
    va_end(given);
    return send(fd, head, size, MSG_NOSIGNAL) == size || fault("send", strerror(errno));
}

static bool send_bytes(int fd)
{
    for (int64_t left = bytes; left;) {
        off_t place = (bytes - left) % period;
        size_t want = left < period - place ? left : period - place;
        ssize_t went = sendfile(fd, data, &place, want); /* no copy: the load is to cost little */

        if (went <= 0)
            return fault("send", strerror(errno));
        left -= went;
    }
    return true;
}

/* All up to the server's FIN, as far as it has room: a string. */
static bool hear(int fd, char answer[ANSWER + 1])
{
    char rest[ANSWER];
    size_t got = 0;
    ssize_t more;

    while ((more = got < ANSWER ? recv(fd, answer + got, ANSWER - got, 0)
                                : recv(fd, rest, ANSWER, 0)) > 0)
        got += got < ANSWER ? more : 0;
    answer[got] = 0;
    return more == 0 || fault("no answer", strerror(errno));
}

static bool hear_answer(int fd)
{
    char answer[ANSWER + 1];

    if (!hear(fd, answer))
        return false;
    if (strncmp(answer, wanted, strlen(wanted)) || (!put && !tus && strcmp(answer, wanted)))
        return fault("the answer to a stream is", *answer ? answer : "a FIN alone");
    return true;
}

/* Where an upload is to go: the path of the Location that the server made for it. */
static bool create(char path[ANSWER])
{
    char answer[ANSWER + 1], *location, *slashes;
    int fd = dial(port, 0, 0);
    bool heard = say(fd,
                     "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                     "Tus-Resumable: 1.0.0\r\nUpload-Length: %lld\r\n"
                     "Upload-Metadata: filename Zmls,box Ym94\r\nContent-Length: 0\r\n\r\n",
                     where, (long long)bytes) &&
                 hear(fd, answer);

    close(fd);
    if (!heard)
        return false;
    if (!(location = strcasestr(answer, "\r\nLocation: ")))
        return fault("the answer to a POST is", answer);
    location += strlen("\r\nLocation: ");
    location[strcspn(location, "\r\n")] = 0;
    if ((slashes = strstr(location, "://")) && !(location = strchr(slashes + 3, '/')))
        return fault("no path in", slashes);
    strcpy(path, location);
    return true;
}

static bool store(int fd, const char *path)
{
    static atomic_uint requests;

    if (put && !say(fd,
                    "PUT %s%06u.bin HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                    "Content-Length: %lld\r\n\r\n",
                    where, ++requests, (long long)bytes))
        return false;
    if (tus && !say(fd,
                    "PATCH %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                    "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Length: %lld\r\n"
                    "Content-Type: application/offset+octet-stream\r\n\r\n",
                    path, (long long)bytes))
        return false;
    if (!send_bytes(fd))
        return false;
    if (!put && !tus)
        shutdown(fd, SHUT_WR);
    return hear_answer(fd);
}

/* One stream from its connect to its end: whether it was answered rightly. */
static bool stream(void)
{
    uint64_t began = now();
    char path[ANSWER] = "";
    bool right = !tus || create(path);
    int fd;

    if (!right)
        return false;
    fd = dial(port, 0, 0);
    right = store(fd, path);
    close(fd);
    if (right && !echo_port)
        took(now() - began);
    return right;
}

/* Whether `size` bytes at `place` of a stream are these. */
static bool same(const char *given, size_t size, int64_t place)
{
    while (size) {
        int64_t at = place % period, left = period - at;
        size_t piece = (int64_t)size < left ? size : (size_t)left;

        if (memcmp(given, text + at, piece))
            return false;
        given += piece;
        place += piece;
        size -= piece;
    }
    return true;
}

/* A stored stream comes back whole; compared: every byte is looked at, which takes its time. */
static bool fetch(unsigned number, bool compared)
{
    uint64_t began = now();
    char head[ANSWER + 1], *body = NULL, *room = NULL;
    int64_t got = 0, size = 0;
    int fd = dial(port, 0, 0);
    ssize_t more = 1;
    bool right = say(fd,
                     "GET %s%06u.bin HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
                     where, number);

    while (right && !body && size < ANSWER && more > 0) {
        more = recv(fd, head + size, ANSWER - size, 0);
        size += more > 0 ? more : 0;
        head[size] = 0;
        body = strstr(head, "\r\n\r\n");
    }
    if (right && (!body || strncmp(head, "HTTP/1.1 200 ", 13)))
        right = fault("the answer to a GET is", size ? head : "nothing");
    if (right) {
        got = size - (body + 4 - head);
        right = same(body + 4, got, 0) || fault("GET", "the first bytes are not what was stored");
    }
    if (compared && !(room = malloc(READ)))
        die("malloc");
    while (right && (more = recv(fd, room, READ, compared ? 0 : MSG_TRUNC)) > 0) {
        if (compared && !same(room, more, got))
            right = fault("GET", "the bytes are not what was stored");
        got += more;
    }
    if (right && (more < 0 || got != bytes))
        right = fault("GET", more < 0 ? strerror(errno) : "not as many bytes as were stored");
    free(room);
    close(fd);
    if (right && !compared && !echo_port)
        took(now() - began);
    return right;
}

static void compose(void)
{
    period = LINES * 256;
    text = malloc(period + 1);
    data = memfd_create("stream", MFD_CLOEXEC);
    if (!text || data < 0)
        die("compose");
    for (int i = 0; i < LINES; i++)
        sprintf(text + i * 256, "line %0250d\n", i);
    if (write(data, text, period) != period)
        die("compose");
}

static void *one_stream(void *counted)
{
    if (stream())
        ++*(atomic_ullong *)counted;
    return NULL;
}

static void *fetch_after_fetch(void *counted)
{
    static atomic_uint fetchers;
    unsigned number = ++fetchers;

    do
        if (fetch(number, false))
            ++*(atomic_ullong *)counted;
    while (now() < deadline && !wrong);
    return NULL;
}

static void *stream_after_stream(void *counted)
{
    while (now() < deadline && !wrong)
        if (stream())
            ++*(atomic_ullong *)counted;
    return NULL;
}

static void *lines(void *peer)
{
    static const char line[LINE + 1] =
        "while the streams come in, this line goes to and fro. 012345678\n";
    static const struct sched_param first = {.sched_priority = 1};
    int fd = (intptr_t)peer;

    /* Where it may, it goes before our senders: the server's delay is what counts. */
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &first);
    for (uint64_t sent = 0, got = 0, began = now(); !over || got < sent;) {
        uint64_t time = now(), due = began + sent * PACE;
        struct timespec wait = {.tv_nsec = over ? SECOND / 10 : due > time ? due - time : 0};
        struct pollfd answered = {.fd = fd, .events = POLLIN};
        char answer[LINE];

        if (time > due + PATIENCE * SECOND)
            return fault("echo", "no answer"), NULL;
        if (!over && due <= time) {
            if (send(fd, line, LINE, MSG_NOSIGNAL) != LINE)
                return fault("echo", strerror(errno)), NULL;
            sent++;
        }
        if (ppoll(&answered, 1, &wait, NULL) <= 0)
            continue;
        if (recv(fd, answer, LINE, MSG_WAITALL) != LINE)
            return fault("echo", "the server closed, or does not answer"), NULL;
        for (int i = 0; i < LINE; i++)
            if (answer[i] != (line[i] >= 'a' && line[i] <= 'z' ? line[i] - 'a' + 'A' : line[i]))
                return fault("echo", "the answer is not the line in upper case"), NULL;
        took(now() - (began + got++ * PACE));
    }
    return NULL;
}

static pthread_t start(void *(*act)(void *), void *with)
{
    pthread_attr_t kind;
    pthread_t thread;

    pthread_attr_init(&kind);
    pthread_attr_setstacksize(&kind, STACK);
    if ((errno = pthread_create(&thread, &kind, act, with)))
        die("pthread_create");
    return thread;
}

static void in_threads(int count, void *(*act)(void *), void *with)
{
    pthread_t threads[count];

    for (int i = 0; i < count; i++)
        threads[i] = start(act, with);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

/* They stay open; the answer comes when it is over, to nobody. */
static void idle(int count, atomic_ullong *counted)
{
    for (int i = 0; i < count; i++) {
        uint64_t began = now();
        int fd = dial(port, 0, 0);
        off_t place = 0;

        if (sendfile(fd, data, &place, bytes) != bytes)
            die("send");
        took(now() - began);
        ++*counted;
    }
}

static int usage(void)
{
    fprintf(stderr, "usage: bulk_load PORT SECONDS streams|small|idle|fetch COUNT BYTES "
                    "raw|put|tus WHERE ANSWER [ECHO_PORT]\n");
    return 2;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 3 ? argv[3] : "";
    bool streams = !strcmp(mode, "streams"), small = !strcmp(mode, "small");
    bool fetches = !strcmp(mode, "fetch"), idles = !strcmp(mode, "idle");
    atomic_ullong counted = 0;
    uint64_t began, ended;
    pthread_t echoing = 0;
    double spent;
    int count;

    if ((argc != 9 && argc != 10) || (!streams && !small && !idles && !fetches))
        return usage();
    port = atoi(argv[1]);
    count = atoi(argv[4]);
    bytes = atoll(argv[5]);
    put = !strcmp(argv[6], "put");
    tus = !strcmp(argv[6], "tus");
    where = argv[7];
    wanted = argv[8];
    if (count < 1 || count > (idles ? 20000 : 1000) || bytes < 1 || (idles && bytes > 65536) ||
        atof(argv[2]) <= 0 || strlen(where) > 1000 || strlen(wanted) > ANSWER ||
        (!put && !tus && strcmp(argv[6], "raw")) || (fetches && !put))
        return usage();
    compose();
    end_with_parent();
    alarm(atof(argv[2]) + SPARE);
    allow_files();
    if (fetches) {
        in_threads(count, one_stream, &counted);
        if (counted != (unsigned)count)
            return 1;
        counted = taken = 0;
    }
    if (argc == 10)
        echo_port = atoi(argv[9]);
    if (!may_begin())
        return 1;
    spent = cpu();
    if (echo_port)
        echoing = start(lines, (void *)(intptr_t)dial(echo_port, 0, 0));
    began = now();
    deadline = began + atof(argv[2]) * SECOND;
    if (streams)
        in_threads(count, one_stream, &counted);
    else if (fetches)
        in_threads(count, fetch_after_fetch, &counted);
    else if (small)
        in_threads(count, stream_after_stream, &counted);
    else
        idle(count, &counted);
    ended = now();
    over = true;
    if (echo_port)
        pthread_join(echoing, NULL);
    spent = cpu() - spent;
    if (fetches && !wrong)
        fetch(1, true);
    qsort(latencies, taken, sizeof *latencies, ascending);
    printf("{\"ops\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": "
           "%.2f, \"wrong\": %llu, \"cpu\": %.6f}\n",
           counted, counted * bytes, (ended - began) / 1e9, percentile(.5), percentile(.99),
           (unsigned long long)wrong, spent);
    hold();
    return 0;
}
