/* What landing streams in files can cost at best: a thread a connection, and nothing proved.
 *
 * usage: ingest_server PORT FOLDER MAX splice     what comes first is written, the rest spliced
 *        ingest_server PORT FOLDER MAX durable    recv, write, and fdatasync of every file
 *
 * Listens on 127.0.0.1 until killed. Files hold MAX bytes and are named as Roundhouse names them.
 * Our FIN means that all is written. Ends with its parent.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>

#define NAME "ingest_server"
#include "server.h"

#define FIRST (64 * 1024)  /* bytes that come before a pipe is worth its while */
#define READ (256 * 1024)  /* of one recv or, four times that, one splice */
#define STACK (READ + 64 * 1024)

static const char *folder;
static int64_t most; /* bytes of a file */
static bool durable;

/* A stream and the file it is at. */
struct stream {
    int peer, file, pipe[2];
    long series, part;
    int64_t left; /* until the file is full */
};

static void open_part(struct stream *s)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/c_%08ld_parte_%06ld.bin", folder, s->series, ++s->part);
    s->file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0640);
    if (s->file < 0)
        die(path);
    s->left = most;
}

static void close_part(struct stream *s)
{
    if (durable && fdatasync(s->file))
        die("fdatasync");
    close(s->file);
    s->file = -1;
}

static void write_all(int file, const char *data, size_t size)
{
    while (size) {
        ssize_t went = write(file, data, size);

        if (went <= 0)
            die("write");
        data += went;
        size -= went;
    }
}

/* At most `want` bytes of the peer go into the file: how many; 0 or less: there are no more. */
static ssize_t copy(struct stream *s, char *data, size_t want)
{
    ssize_t size = recv(s->peer, data, want, 0);

    if (size > 0 && s->file < 0)
        open_part(s);
    if (size > 0)
        write_all(s->file, data, size);
    return size;
}

static ssize_t move(struct stream *s, size_t want)
{
    ssize_t size = splice(s->peer, NULL, s->pipe[1], NULL, want, SPLICE_F_MOVE);

    if (size > 0 && s->file < 0)
        open_part(s);
    for (ssize_t left = size; left > 0;) {
        ssize_t went = splice(s->pipe[0], NULL, s->file, NULL, left, SPLICE_F_MOVE);

        if (went <= 0)
            die("splice");
        left -= went;
    }
    return size;
}

static void *serve(void *peer)
{
    static long served;
    struct stream s = {.peer = (intptr_t)peer, .file = -1, .pipe = {-1, -1}};
    char data[READ];

    s.series = __sync_add_and_fetch(&served, 1);
    for (int64_t all = 0, size = 1; size > 0; all += size) {
        int64_t room = s.file < 0 ? most : s.left;
        bool spliced = !durable && all >= FIRST;
        int64_t want = spliced ? 4 * READ : durable ? READ : FIRST;

        if (spliced && s.pipe[0] < 0) {
            if (pipe2(s.pipe, O_CLOEXEC))
                die("pipe");
            fcntl(s.pipe[1], F_SETPIPE_SZ, 4 * READ); /* not allowed: 64 KiB will do */
        }
        want = want < room ? want : room;
        size = spliced ? move(&s, want) : copy(&s, data, want);
        if (size > 0 && !(s.left -= size))
            close_part(&s);
    }
    if (s.file >= 0)
        close_part(&s);
    if (s.pipe[0] >= 0) {
        close(s.pipe[0]);
        close(s.pipe[1]);
    }
    close(s.peer);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 5 || (strcmp(argv[4], "splice") && strcmp(argv[4], "durable")) ||
        (most = atoll(argv[3])) < 1) {
        fprintf(stderr, "usage: ingest_server PORT FOLDER MAX splice|durable\n");
        return 2;
    }
    folder = argv[2];
    durable = *argv[4] == 'd';
    end_with_parent();
    allow_files();
    serve_in_threads(atoi(argv[1]), STACK, serve);
}
