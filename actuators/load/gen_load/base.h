/* What every part of the engine needs: time, errors that end the program, memory, growing text. */
#ifndef GEN_LOAD_BASE_H
#define GEN_LOAD_BASE_H

#include <errno.h>
#include <stdarg.h>
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

/* The user can cure it: one line on stderr, exit code 2. */
__attribute__((format(printf, 1, 2), noreturn)) static void fail_user(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("gen_load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(EXIT_USER_ERROR);
}

/* The machine refused something; `what` names it and errno says why. */
__attribute__((noreturn)) static void fail_system(const char *what) {
    fprintf(stderr, "gen_load: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static int64_t seconds_to_ns(double seconds) { return (int64_t)(seconds * 1e9 + 0.5); }

static double ns_to_seconds(int64_t ns) { return (double)ns / 1e9; }

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) fail_system("out of memory");
    return memory;
}

static void *resize(void *memory, size_t count, size_t size) {
    void *bigger = reallocarray(memory, count, size);
    if (bigger == NULL) fail_system("out of memory");
    return bigger;
}

static char *copy_text(const char *source) {
    size_t size = strlen(source) + 1;
    return memcpy(allocate(size, 1), source, size);
}

/* A text that grows; reused between windows, so its memory stays flat. */
struct text {
    char *data;
    size_t length, capacity;
};

static void text_reserve(struct text *text, size_t more) {
    if (text->length + more + 1 <= text->capacity) return;
    text->capacity = 2 * (text->length + more + 1);
    text->data = resize(text->data, text->capacity, 1);
}

__attribute__((format(printf, 2, 3))) static void text_add(struct text *text, const char *format, ...) {
    va_list arguments;
    text_reserve(text, 256);
    for (;;) {
        size_t room = text->capacity - text->length;
        va_start(arguments, format);
        int needed = vsnprintf(text->data + text->length, room, format, arguments);
        va_end(arguments);
        if (needed < 0) fail_system("formatting");
        if ((size_t)needed < room) {
            text->length += (size_t)needed;
            return;
        }
        text_reserve(text, (size_t)needed);
    }
}

#endif
