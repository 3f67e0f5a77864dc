#include "exchange.h"

#include <sys/epoll.h>

#define LATE_NS 1000000LL
enum { READ_BUFFER = 1 << 16, SMALL_ANSWER = 1 << 14, STATUS_REFUSED = 503 };

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

static void backlog_drop_first(struct backlog *backlog) {
    backlog->first = (backlog->first + 1) & (backlog->capacity - 1);
    backlog->count--;
}

static struct counters *counters_of(struct engine *engine, const struct request *request) {
    return &engine->window.types[request->stream];
}

static void note_outcome(struct engine *engine, const struct request *request, int64_t now, int status,
                         const char *outcome) {
    if (engine->requests_csv == NULL) return;
    fprintf(engine->requests_csv, "%s,%llu,%lld,%lld,%lld,%d,%s\n", engine->plan->streams[request->stream].type,
            (unsigned long long)request->ordinal, (long long)(request->due_ns - engine->start_ns),
            request->sent_ns == 0 ? -1LL : (long long)(request->sent_ns - engine->start_ns),
            (long long)(now - engine->start_ns), status, outcome);
}

/* A request that was never written cannot have been lost on the way. */
static enum error_class class_of_loss(const struct request *request, enum error_class class) {
    return request->sent_ns == 0 && (class == ERROR_CLOSED || class == ERROR_TIMEOUT) ? ERROR_CONNECT : class;
}

/* Where clients repeat, interrupted runs excepted: the plan is over. */
static void repeat(struct engine *engine, const struct request *request, bool refused, int64_t now) {
    const struct stream *stream = &engine->plan->streams[request->stream];
    if (!engine->interrupted) repeat_later(&engine->repeats, stream, request, refused, engine->options->seed, now);
}

static void count_failure(struct engine *engine, const struct request *request, enum error_class class) {
    class = class_of_loss(request, class);
    counters_of(engine, request)->errors[class]++;
    int64_t now = now_ns();
    note_outcome(engine, request, now, 0, error_names[class]);
    repeat(engine, request, false, now);
}

void request_failed(struct engine *engine, struct connection *connection, enum error_class class) {
    count_failure(engine, &connection->request, class);
    engine->in_flight--;
    connection_close(&engine->pool, connection);
}

static void count_good(struct engine *engine, const struct request *request, int64_t done_ns) {
    struct counters *counters = counters_of(engine, request);
    int64_t deadline_ns = seconds_to_ns(engine->plan->streams[request->stream].deadline_s);
    counters->good += done_ns - request->due_ns <= deadline_ns;
    counters->good_first += done_ns - request->first_ns <= deadline_ns;
}

static void request_done(struct engine *engine, struct connection *connection, int64_t arrived_ns) {
    const struct request *request = &connection->request;
    struct counters *counters = counters_of(engine, request);
    int status = connection->response.status;
    /* On loopback an answer can arrive before send() has returned. */
    int64_t done_ns = arrived_ns > request->sent_ns ? arrived_ns : request->sent_ns;
    counters->answered++;
    if (status >= 500) {
        counters->errors[ERROR_STATUS_5XX]++;
        repeat(engine, request, status == STATUS_REFUSED, now_ns());
    } else if (status >= 400) counters->errors[ERROR_STATUS_4XX]++;
    else {
        histogram_record(&counters->corrected, done_ns - request->due_ns);
        histogram_record(&counters->raw, done_ns - request->sent_ns);
        counters->corrected_ns += (uint64_t)(done_ns - request->due_ns);
        counters->raw_ns += (uint64_t)(done_ns - request->sent_ns);
        count_good(engine, request, done_ns);
    }
    note_outcome(engine, request, done_ns, status, "answered");
    engine->in_flight--;
    if (connection->response.keep_alive && connection->unsent == NULL) connection_release(&engine->pool, connection);
    else connection_close(&engine->pool, connection);
}

static void request_written(struct engine *engine, struct connection *connection) {
    struct request *request = &connection->request;
    int64_t now = now_ns();
    /* A client waits from the start of its attempt; without clients the wait begins when the request is written. */
    bool patient = engine->plan->streams[request->stream].clients.patience_s > 0;
    await(&engine->pool.waiting[request->stream], connection,
          (patient ? request->due_ns : now) + patience_ns(engine, request));
    if (request->sent_ns != 0) return; /* a retry */
    request->sent_ns = now;
    struct counters *counters = counters_of(engine, request);
    counters->sent++;
    counters->sent_bytes += engine->writer.bytes.length;
    int64_t delay_ns = now - request->due_ns;
    histogram_record(&engine->window.send_delay, delay_ns);
    if (engine->last_due_ns != 0) {
        double error_ns = (double)(delay_ns - engine->last_delay_ns);
        engine->window.gap_error_ns2 += error_ns * error_ns;
        engine->window.gaps++;
    }
    engine->last_due_ns = request->due_ns, engine->last_delay_ns = delay_ns;
    if (now - request->due_ns > LATE_NS) counters->late++;
}

static void connection_lost(struct engine *engine, struct connection *connection);

static void request_send(struct engine *engine, struct connection *connection) {
    const struct request *request = &connection->request;
    const struct stream *stream = &engine->plan->streams[request->stream];
    write_request(&engine->writer, stream, request->stream, request->ordinal);
    response_begin(&connection->response, strcmp(stream->method, "HEAD") == 0);
    connection->received = 0;
    const struct text *bytes = &engine->writer.bytes;
    if (connection_write(connection, bytes->data, bytes->length) == WRITE_FAILED) connection_lost(engine, connection);
    else request_written(engine, connection);
}

/* Sends on a new connection, in a free slot. */
static void request_connect(struct engine *engine, struct connection *connection) {
    int64_t deadline_ns = now_ns() + seconds_to_ns(engine->options->connect_timeout_s);
    await(&engine->pool.connecting, connection, deadline_ns);
    switch (connection_open(&engine->pool, connection)) {
    case CONNECT_FAILED: request_failed(engine, connection, ERROR_CLOSED); break;
    case CONNECT_DONE: request_send(engine, connection); break;
    case CONNECT_BEGUN: break;
    }
}

/* The server may close an idle connection while a request is sent on it: such a request is repeated once, on a new one. */
static void connection_lost(struct engine *engine, struct connection *connection) {
    bool stale = connection->reused && !connection->response.begun && !connection->request.retried;
    if (!stale) {
        request_failed(engine, connection, ERROR_CLOSED);
        return;
    }
    struct request request = connection->request;
    counters_of(engine, &request)->retried++;
    connection_close(&engine->pool, connection);
    connection->request = request;
    connection->request.retried = true;
    request_connect(engine, connection);
}

/* False when every connection is busy. */
static bool request_start(struct engine *engine, const struct request *request) {
    struct connection *connection = engine->pool.idle.first;
    bool open = connection != NULL;
    if (!open) connection = engine->pool.closed.first;
    if (connection == NULL) return false;
    histogram_record(&engine->window.pick_delay, now_ns() - request->due_ns);
    connection->request = *request;
    engine->in_flight++;
    if (open) request_send(engine, connection);
    else request_connect(engine, connection);
    return true;
}

void start_backlog(struct engine *engine) {
    while (engine->backlog.count > 0 && request_start(engine, backlog_first(&engine->backlog)))
        backlog_drop_first(&engine->backlog);
}

void drop_first_of_backlog(struct engine *engine) {
    count_failure(engine, backlog_first(&engine->backlog), ERROR_NOT_SENT);
    backlog_drop_first(&engine->backlog);
}

static void begin(struct engine *engine, const struct request *request) {
    if (engine->backlog.count > 0 || !request_start(engine, request)) backlog_add(&engine->backlog, request);
}

void request_due(struct engine *engine, size_t stream, int64_t due_ns) {
    struct request request = {.stream = stream, .ordinal = engine->ordinals[stream]++, .due_ns = due_ns};
    request.first_ns = due_ns;
    counters_of(engine, &request)->planned++;
    begin(engine, &request);
}

void repeat_due(struct engine *engine) {
    struct request request = take_repeat(&engine->repeats);
    counters_of(engine, &request)->repeated++;
    begin(engine, &request);
}

static void connection_readable(struct engine *engine, struct connection *connection, bool closing) {
    static char buffer[READ_BUFFER];
    for (;;) {
        int64_t arrived_ns;
        ssize_t got = connection_read(&engine->pool, connection, buffer, sizeof buffer, &arrived_ns);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            if (got == 0 && connection->response.state == UNTIL_CLOSE) request_done(engine, connection, arrived_ns);
            else connection_lost(engine, connection);
            return;
        }
        counters_of(engine, &connection->request)->received_bytes += (uint64_t)got;
        connection->received += (size_t)got;
        response_feed(&connection->response, buffer, (size_t)got);
        engine->read_at_once |= connection->received > SMALL_ANSWER || connection->response.state == UNTIL_CLOSE;
        if (connection->response.state == MALFORMED) {
            request_failed(engine, connection, ERROR_CLOSED);
            return;
        }
        if (connection->response.state == COMPLETE) {
            connection->response.keep_alive &= !closing;
            request_done(engine, connection, arrived_ns);
            return;
        }
        if ((size_t)got < sizeof buffer && !closing) return; /* edge-triggered: more raises another event */
    }
}

void connection_event(struct engine *engine, struct connection *connection, uint32_t events) {
    struct pool *pool = &engine->pool;
    bool closing = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    if (connection->list == &pool->connecting) {
        if (!connection_succeeded(connection)) request_failed(engine, connection, ERROR_CLOSED);
        else if (events & EPOLLOUT) request_send(engine, connection);
    } else if (connection->list == &pool->idle) {
        if (closing || (events & EPOLLIN)) connection_close(pool, connection);
    } else if (is_waiting(pool, connection)) {
        if (connection->unsent != NULL && connection_flush(connection) == WRITE_FAILED)
            connection_lost(engine, connection);
        else if (closing || (events & EPOLLIN))
            connection_readable(engine, connection, closing);
    }
}
