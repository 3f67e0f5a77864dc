/* One run of the load engine: its state and its event loop (one thread, one epoll, one timer). */
#ifndef GEN_LOAD_ENGINE_H
#define GEN_LOAD_ENGINE_H

#include "clients.h"
#include "report.h"
#include "requests.h"

/* Requests that are due while every connection is busy: a queue that grows, first come, first served. */
struct backlog {
    struct request *requests; /* a ring; its capacity is a power of two */
    size_t first, count, capacity;
};

struct engine {
    const struct options *options;
    const struct plan *plan;
    struct arrivals *arrivals; /* one per stream */
    uint64_t *ordinals;        /* next ordinal per stream */
    struct pool pool;
    struct backlog backlog;
    struct repeats repeats;
    struct request_writer writer;
    struct report report;
    struct period window, total;
    int timer, signals;
    int64_t start_ns, end_ns, window_end_ns, armed_ns, cpu_ns, spin_ns, collected_ns;
    int64_t last_due_ns, last_delay_ns; /* of the last request that was sent */
    size_t in_flight;
    bool interrupted;
    bool read_at_once; /* some answers are too large for the kernel to keep, or end when their connection does */
    FILE *requests_csv;
};

/* How long the client of a request waits for the answer. */
int64_t patience_ns(const struct engine *engine, const struct request *request);

/* Connects to the target once; exits with one line when it is not reachable. */
void engine_prepare(struct engine *engine, const struct options *options, const struct plan *plan,
                    const struct target *target);

/* The plan's second 0 is now. */
void engine_begin(struct engine *engine, struct arrivals *arrivals);

/* Returns after the summary: the plan has ended and nothing is in flight. */
void engine_run(struct engine *engine);

void engine_end(struct engine *engine);

#endif
