/* The life of a request, from its due time until it is counted.
 *
 *    due → picked (a connection, or the backlog while all are busy) → sent → done or failed.
 *   planned + repeated = sent + not_sent + connect errors;  sent = answered + timeouts + closed. */
#ifndef GEN_LOAD_EXCHANGE_H
#define GEN_LOAD_EXCHANGE_H

#include "engine.h"

void request_due(struct engine *engine, size_t stream, int64_t due_ns);

/* A client makes another attempt, the first of engine->repeats. */
void repeat_due(struct engine *engine);

/* Starts waiting requests while there are free connections. */
void start_backlog(struct engine *engine);

void drop_first_of_backlog(struct engine *engine);

static inline const struct request *backlog_first(const struct backlog *backlog) {
    return &backlog->requests[backlog->first];
}

void request_failed(struct engine *engine, struct connection *connection, enum error_class class);

/* What epoll reported about a connection. */
void connection_event(struct engine *engine, struct connection *connection, uint32_t events);

#endif
