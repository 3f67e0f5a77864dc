/* What the clients of a stream do when an attempt fails: they give up after their patience, and repeat it after a pause.
 * Failures do not change the rate of first attempts. */
#ifndef GEN_LOAD_CLIENTS_H
#define GEN_LOAD_CLIENTS_H

#include "connections.h"
#include "plan.h"
#include "random.h"

/* Attempts that clients will repeat: a binary heap, the one that is due first on top. */
struct repeats {
    struct request *requests;
    size_t count, capacity;
};

/* Due time of the next one, NEVER when there is none. */
static inline int64_t repeats_due_ns(const struct repeats *repeats) {
    return repeats->count > 0 ? repeats->requests[0].due_ns : NEVER;
}

/* The client of an attempt that was refused or failed at `now` may make another one, which this adds. The draw depends on
 * seed, stream, ordinal and attempt alone. */
void repeat_later(struct repeats *repeats, const struct stream *stream, const struct request *request, bool refused,
                  uint64_t seed, int64_t now);

struct request take_repeat(struct repeats *repeats);

#endif
