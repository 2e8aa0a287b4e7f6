/* Preloaded into the daemon: counts what makes data durable, over all its threads.

   CHAOS_POINT=fsync:7   the process kills itself in place of its 7th fsync (kinds: see below), and
                         says so on standard error first
   CHAOS_SYNCS=off       nothing is ever synced: the control of a power cut, which has to lose

   gcc -shared -fPIC -O2 -o points.so points.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { FSYNC, FDATASYNC, SYNCFS, RENAME, UNLINK, FTRUNCATE, KINDS };
static const char *const names[KINDS] = {"fsync",  "fdatasync", "syncfs",
                                         "rename", "unlink",    "ftruncate"};
static int chosen = -1;
static long last;
static long counts[KINDS];
static int syncs = 1;

__attribute__((constructor)) static void begin(void) {
    const char *point = getenv("CHAOS_POINT"), *off = getenv("CHAOS_SYNCS");
    syncs = !(off && !strcmp(off, "off"));
    for (int kind = 0; point && kind < KINDS; kind++) {
        size_t length = strlen(names[kind]);
        if (!strncmp(point, names[kind], length) && point[length] == ':') {
            chosen = kind;
            last = atol(point + length + 1);
        }
    }
}

static void reach(enum kind kind) {
    if (__atomic_add_fetch(&counts[kind], 1, __ATOMIC_SEQ_CST) == last && (int)kind == chosen) {
        dprintf(2, "chaos: killed at %s %ld\n", names[kind], last);
        kill(getpid(), SIGKILL);
        for (;;) pause();
    }
}

#define REAL(type, name, ...)                                             \
    static type (*real)(__VA_ARGS__);                                     \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define SYNC(name, kind)                                                  \
    int name(int fd) {                                                    \
        REAL(int, name, int);                                             \
        reach(kind);                                                      \
        return syncs ? real(fd) : 0;                                      \
    }
SYNC(fsync, FSYNC)
SYNC(fdatasync, FDATASYNC)
SYNC(syncfs, SYNCFS)

int sync_file_range(int fd, off_t from, off_t length, unsigned flags) {
    REAL(int, sync_file_range, int, off_t, off_t, unsigned);
    return syncs ? real(fd, from, length, flags) : 0;
}

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    reach(RENAME);
    return real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *);
    reach(RENAME);
    return real(a, from, b, to);
}

int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(int, renameat2, int, const char *, int, const char *, unsigned);
    reach(RENAME);
    return real(a, from, b, to, flags);
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    reach(UNLINK);
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    reach(UNLINK);
    return real(folder, path, flags);
}

int ftruncate(int fd, off_t length) {
    REAL(int, ftruncate, int, off_t);
    reach(FTRUNCATE);
    return real(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    REAL(int, ftruncate64, int, off64_t);
    reach(FTRUNCATE);
    return real(fd, length);
}
