/* SPDX-License-Identifier: MIT
 *
 * Reads the text cases under tests/cases. A file holds cases; a case is
 *
 *     # Title
 *     prose, which says why the case exists
 *     == KIND ARGUMENTS          begins a block; the lines up to the next "==" or "#" are its bytes
 *     == expect                  the last block: one event per line
 *
 * Line ends of the file are not part of a block's bytes. Escapes in a block: \r \n \t \\ \xHH, and \*{N,TEXT} for N times TEXT.
 * Also here: bytes placed so that they end at an unreadable page, so that any read beyond them crashes.
 */
#ifndef AS_CASES_H
#define AS_CASES_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct block {
    char kind[16], arg[200];
    char *p;
    size_t n;
} block;

typedef struct tcase {
    char title[200];
    block b[64];
    size_t n_blocks;
    char *expect;
} tcase;

static void put(char **p, size_t *n, const char *s, size_t k) {
    *p = realloc(*p, *n + k + 1);
    memcpy(*p + *n, s, k);
    *n += k;
    (*p)[*n] = 0;
}

static void unescape(block *b, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '\\' && i + 1 < n) {
            c = s[++i];
            if (c == 'x' && i + 2 < n) {
                char hex[3] = {s[i + 1], s[i + 2], 0};
                c = (char)strtol(hex, NULL, 16);
                i += 2;
            } else if (c == '*') {
                char *comma, *close = memchr(s + i, '}', n - i);
                long times = strtol(s + i + 2, &comma, 10);
                block inner = {"", "", NULL, 0};
                unescape(&inner, comma + 1, (size_t)(close - comma - 1));
                while (times-- > 0)
                    put(&b->p, &b->n, inner.p, inner.n);
                free(inner.p);
                i = (size_t)(close - s);
                continue;
            } else {
                c = c == 'r' ? '\r' : c == 'n' ? '\n' : c == 't' ? '\t' : c;
            }
        }
        put(&b->p, &b->n, &c, 1);
    }
}

static void case_free(tcase *t) {
    for (size_t i = 0; i < t->n_blocks; i++)
        free(t->b[i].p);
    free(t->expect);
    memset(t, 0, sizeof *t);
}

/* Calls `run` for each case of a file; returns how many it found. */
static int cases_in_file(const char *path, int (*run)(const char *path, tcase *t), int *failed) {
    FILE *f = fopen(path, "r");
    if (!f) {
        perror(path);
        exit(1);
    }
    static tcase t;
    memset(&t, 0, sizeof t);
    char *line = NULL;
    size_t cap = 0, n_expect = 0;
    ssize_t n;
    int found = 0, in_expect = 0;
    do {
        n = getline(&line, &cap, f);
        if (n > 0 && line[n - 1] == '\n')
            line[--n] = 0;
        int header = n >= 2 && line[0] == '#' && line[1] == ' ';
        if (n < 0 || header) {
            if (t.expect) {
                found++;
                *failed += run(path, &t);
            }
            case_free(&t);
            n_expect = 0;
            in_expect = 0;
            if (n >= 0)
                snprintf(t.title, sizeof t.title, "%s", line + 2);
        } else if (!strncmp(line, "== ", 3)) {
            in_expect = !strcmp(line + 3, "expect");
            if (in_expect) {
                put(&t.expect, &n_expect, "", 0);
            } else if (t.n_blocks == 64) {
                fprintf(stderr, "%s: too many blocks\n", path);
                exit(1);
            } else {
                block *b = &t.b[t.n_blocks++];
                sscanf(line + 3, "%15s %199[^\n]", b->kind, b->arg);
            }
        } else if (in_expect && n > 0) {
            put(&t.expect, &n_expect, line, (size_t)n);
            put(&t.expect, &n_expect, "\n", 1);
        } else if (t.n_blocks) {
            unescape(&t.b[t.n_blocks - 1], line, (size_t)n);
        }
    } while (n >= 0);
    free(line);
    fclose(f);
    return found;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* All *.txt of a directory. The exit status of a test program. */
static int cases_in_dir(const char *dir, int (*run)(const char *path, tcase *t)) {
    struct dirent **list;
    int k = scandir(dir, &list, NULL, by_name), found = 0, failed = 0;
    if (k < 0) {
        perror(dir);
        return 1;
    }
    for (int i = 0; i < k; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", dir, list[i]->d_name);
        size_t n = strlen(path);
        if (n > 4 && !strcmp(path + n - 4, ".txt"))
            found += cases_in_file(path, run, &failed);
        free(list[i]);
    }
    free(list);
    printf("%s: %d cases, %d failed\n", dir, found, failed);
    return failed || !found;
}

/* A copy of the bytes that ends where the readable memory ends. Valid until the next call. */
static const uint8_t *guarded(const void *p, size_t n) {
    static uint8_t *base;
    static size_t size;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), need = (n + page - 1) / page * page;
    if (need > size || !base) {
        if (base)
            munmap(base, size + page);
        size = need ? need : page;
        base = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED || mprotect(base + size, page, PROT_NONE) != 0) {
            perror("mmap");
            exit(1);
        }
    }
    if (n)
        memcpy(base + size - n, p, n);
    return base + size - n;
}

#endif
