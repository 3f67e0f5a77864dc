/* Requests that are due while every connection is busy: a queue that grows, first come, first served. */
#ifndef GEN_LOAD_BACKLOG_H
#define GEN_LOAD_BACKLOG_H

#include "connections.h"

struct backlog {
    struct request *requests; /* a ring; its capacity is a power of two */
    size_t first, count, capacity;
};

static void backlog_grow(struct backlog *backlog) {
    size_t capacity = backlog->capacity > 0 ? 2 * backlog->capacity : 1024;
    struct request *requests = allocate(capacity, sizeof *requests);
    for (size_t i = 0; i < backlog->count; i++)
        requests[i] = backlog->requests[(backlog->first + i) & (backlog->capacity - 1)];
    free(backlog->requests);
    backlog->requests = requests;
    backlog->capacity = capacity;
    backlog->first = 0;
}

static void backlog_add(struct backlog *backlog, const struct request *request) {
    if (backlog->count == backlog->capacity) backlog_grow(backlog);
    backlog->requests[(backlog->first + backlog->count++) & (backlog->capacity - 1)] = *request;
}

static const struct request *backlog_first(const struct backlog *backlog) {
    return &backlog->requests[backlog->first];
}

static void backlog_drop_first(struct backlog *backlog) {
    backlog->first = (backlog->first + 1) & (backlog->capacity - 1);
    backlog->count--;
}

#endif
