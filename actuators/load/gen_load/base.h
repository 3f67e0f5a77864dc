/* Shared by all parts of the load engine: time, errors that end the program, memory, growing text. */
#ifndef GEN_LOAD_BASE_H
#define GEN_LOAD_BASE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* must come before the first system header: every file includes this one first */
#endif

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NS_PER_S 1000000000LL
#define NEVER INT64_MAX

enum { EXIT_USER_ERROR = 2 };

/* For an error that the user can correct: prints one line to stderr and exits with status 2. */
__attribute__((format(printf, 1, 2), noreturn)) void fail_user(const char *format, ...);

/* For an error of the system: prints `what` failed and the text of errno, and exits with status 1. */
__attribute__((noreturn)) void fail_system(const char *what);

int64_t clock_ns(clockid_t clock);

static inline int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static inline int64_t seconds_to_ns(double seconds) { return (int64_t)(seconds * 1e9 + 0.5); }

static inline double ns_to_seconds(int64_t ns) { return (double)ns / 1e9; }

/* Zeroed memory for `count` elements of `size` bytes; exits when there is none. */
void *allocate(size_t count, size_t size);

void *resize(void *memory, size_t count, size_t size);

char *copy_text(const char *source);

/* A text that grows. It is reused between windows, so that memory use stays constant. */
struct text {
    char *data;
    size_t length, capacity;
};

/* Makes room for `more` bytes and a terminating zero. */
void text_reserve(struct text *text, size_t more);

void text_put(struct text *text, const char *bytes, size_t length);

/* In decimal digits. */
void text_put_number(struct text *text, uint64_t number);

/* Appends as printf does. */
__attribute__((format(printf, 2, 3))) void text_add(struct text *text, const char *format, ...);

#endif
