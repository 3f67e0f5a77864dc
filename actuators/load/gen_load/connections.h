/* A pool of keep-alive connections to one address: the one used last is used first, new ones are opened on demand.
 *
 * A connection carries one request at a time and is always in exactly one of the pool's lists. */
#ifndef GEN_LOAD_CONNECTIONS_H
#define GEN_LOAD_CONNECTIONS_H

#include "responses.h"

#include <sys/socket.h>

/* HOST and PORT of "http://HOST:PORT". */
struct target {
    char host[256], port[8];
    char authority[272]; /* HOST:PORT as the Host header wants it */
};

struct request {
    size_t stream;
    uint64_t ordinal;
    int64_t due_ns;
    int64_t sent_ns; /* of the first byte; 0 until then */
    int64_t first_ns; /* due time of the first attempt */
    unsigned attempt; /* 0 for the first one */
    bool retried;
};

struct connection {
    int fd;
    bool reused; /* has answered before */
    struct list *list;
    struct connection *previous, *next;
    struct request request;
    int64_t deadline_ns;
    size_t received; /* bytes of the response so far */
    struct response response;
    char *unsent; /* what the socket did not take at once */
    size_t unsent_length, unsent_at;
};

struct list {
    struct connection *first, *last;
};

struct pool {
    struct connection *connections;
    size_t limit;
    int epoll;
    struct sockaddr_storage address;
    socklen_t address_length;
    struct list closed, idle, connecting;
    struct list *waiting; /* one per stream, because streams wait for different times */
    size_t waiting_count;
    int64_t wall_offset_ns; /* CLOCK_REALTIME less now_ns() */
    bool stamps;            /* the kernel noted when the last bytes arrived */
};

/* Exits with one line for a URL of another form. */
struct target parse_target(const char *url);

void pool_begin(struct pool *pool, size_t limit, size_t streams);

static inline bool is_waiting(const struct pool *pool, const struct connection *connection) {
    return connection->list >= pool->waiting && connection->list < pool->waiting + pool->waiting_count;
}

/* Sets the pool's address to the first one of the target that accepts a connection; exits when none does. */
void reach_target(const struct target *target, struct pool *pool, double timeout_s);

void pool_end(struct pool *pool);

/* Moves the connection to the end of a list that is ordered by deadline. */
void await(struct list *list, struct connection *connection, int64_t deadline_ns);

void connection_close(struct pool *pool, struct connection *connection);

/* After a response: the connection waits for the next request. */
void connection_release(struct pool *pool, struct connection *connection);

enum connect_result { CONNECT_FAILED, CONNECT_BEGUN, CONNECT_DONE };

/* After CONNECT_BEGUN the first EPOLLOUT tells that it is connected or failed. */
enum connect_result connection_open(struct pool *pool, struct connection *connection);

bool connection_succeeded(const struct connection *connection);

enum write_result { WRITE_FAILED, WRITE_PARTLY, WRITE_ALL };

enum write_result connection_write(struct connection *connection, const char *bytes, size_t length);

/* Writes what an earlier write has left. */
enum write_result connection_flush(struct connection *connection);

/* As recv does, with the time by now_ns() at which the kernel received the last of the bytes (SO_TIMESTAMPNS, socket(7));
 * the present time when it did not note it or the wall clock was set. */
ssize_t connection_read(struct pool *pool, struct connection *connection, char *buffer, size_t size, int64_t *arrived_ns);

#endif
