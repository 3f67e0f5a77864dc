#include "base.h"

#include <stdarg.h>

void fail_user(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("gen_load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(EXIT_USER_ERROR);
}

void fail_system(const char *what) {
    fprintf(stderr, "gen_load: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

int64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) fail_system("out of memory");
    return memory;
}

void *resize(void *memory, size_t count, size_t size) {
    void *bigger = reallocarray(memory, count, size);
    if (bigger == NULL) fail_system("out of memory");
    return bigger;
}

char *copy_text(const char *source) {
    size_t size = strlen(source) + 1;
    return memcpy(allocate(size, 1), source, size);
}

void text_reserve(struct text *text, size_t more) {
    if (text->length + more + 1 <= text->capacity) return;
    text->capacity = 2 * (text->length + more + 1);
    text->data = resize(text->data, text->capacity, 1);
}

void text_put(struct text *text, const char *bytes, size_t length) {
    text_reserve(text, length);
    memcpy(text->data + text->length, bytes, length);
    text->length += length;
    text->data[text->length] = '\0';
}

void text_put_number(struct text *text, uint64_t number) {
    char digits[20];
    size_t first = sizeof digits;
    do digits[--first] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    text_put(text, digits + first, sizeof digits - first);
}

void text_add(struct text *text, const char *format, ...) {
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
