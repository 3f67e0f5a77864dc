/* The bytes of one request, as DeathStarBench's wrk2 scripts send them (scripts/social-network/, *.lua).
 *
 * A request is a function of (seed, type, ordinal) alone, so that a retry and a paired run send the same bytes. The
 * stand-in server draws equal work for requests with an equal X-Request-Sequence. */
#ifndef GEN_LOAD_REQUESTS_H
#define GEN_LOAD_REQUESTS_H

#include "plan.h"

struct request_writer {
    const char *host; /* of the Host header */
    uint64_t seed;
    uint32_t users;
    struct text body, bytes; /* bytes is the whole request, valid until the next one is written */
};

/* Writes the `ordinal`-th request of stream number `index` to writer->bytes. */
void write_request(struct request_writer *writer, const struct stream *stream, size_t index, uint64_t ordinal);

#endif
