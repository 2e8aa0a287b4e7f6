/* What taking and giving files over HTTP can cost at best: splice in, sendfile out, nothing proved.
 *
 * usage: relay_server PORT FOLDER
 *
 * PUT /.../NAME with a Content-Length and GET /.../NAME, one request a connection, a thread each.
 * Listens on 127.0.0.1 until killed. Ends with its parent.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

#define NAME "relay_server"
#include "server.h"

#define HEAD 8192
#define PIECE (1024 * 1024) /* of one splice or sendfile */
#define STACK (128 * 1024)

static const char *folder;

static void answer(int peer, const char *status, int64_t size)
{
    static const char form[] =
        "HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %lld\r\n\r\n";
    char head[256];
    int length = snprintf(head, sizeof head, form, status, (long long)size);

    send(peer, head, length, MSG_NOSIGNAL | (size ? MSG_MORE : 0));
}

static void take(int peer, const char *path, const char *first, size_t got, int64_t size)
{
    int pipe[2], file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    int64_t left = size - got;

    if (file < 0 || pipe2(pipe, O_CLOEXEC))
        die(path);
    if (write(file, first, got) != (ssize_t)got)
        die("write");
    fcntl(pipe[1], F_SETPIPE_SZ, PIECE); /* not allowed: 64 KiB will do */
    while (left > 0) {
        size_t want = left < PIECE ? left : PIECE;
        ssize_t more = splice(peer, NULL, pipe[1], NULL, want, SPLICE_F_MOVE);

        if (more <= 0)
            break;
        left -= more;
        while (more) {
            ssize_t went = splice(pipe[0], NULL, file, NULL, more, SPLICE_F_MOVE);

            if (went <= 0)
                die("splice");
            more -= went;
        }
    }
    close(pipe[0]);
    close(pipe[1]);
    close(file);
    if (!left)
        answer(peer, "201 Created", 0);
}

static void give(int peer, const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;

    if (file < 0) {
        answer(peer, "404 Not Found", 0);
        return;
    }
    if (fstat(file, &status))
        die("fstat");
    answer(peer, "200 OK", status.st_size);
    for (off_t at = 0; at < status.st_size && sendfile(peer, file, &at, PIECE) > 0;)
        ;
    close(file);
}

static void *serve(void *given)
{
    char head[HEAD + 1], path[HEAD + 4096], *end = NULL;
    int peer = (intptr_t)given;
    size_t got = 0;
    ssize_t more;

    while (!end && got < HEAD && (more = recv(peer, head + got, HEAD - got, 0)) > 0) {
        got += more;
        head[got] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    if (end) {
        char *body = end + 4, *length = strcasestr(head, "\r\nContent-Length:");
        char *target = strchr(head, ' '), *stop = target ? strchr(target + 1, ' ') : NULL;
        char *name = stop ? memrchr(target, '/', stop - target) : NULL;

        if (name) {
            *stop = 0;
            snprintf(path, sizeof path, "%s/%s", folder, name + 1);
            if (!strncmp(head, "PUT ", 4) && length)
                take(peer, path, body, got - (body - head), atoll(length + 17));
            else
                give(peer, path);
        }
    }
    close(peer);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: relay_server PORT FOLDER\n");
        return 2;
    }
    folder = argv[2];
    end_with_parent();
    signal(SIGPIPE, SIG_IGN); /* sendfile to who has left */
    serve_in_threads(atoi(argv[1]), STACK, serve);
}
