/* A pool of keep-alive connections: the one used last is used first, new ones are opened on demand.
 *
 * A connection carries one request at a time and is always in exactly one of the pool's lists. */
#ifndef GEN_LOAD_CONNECTIONS_H
#define GEN_LOAD_CONNECTIONS_H

#include "responses.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    size_t stream;
    uint64_t ordinal;
    int64_t due_ns;
    int64_t sent_ns; /* of the first byte; 0 until then */
    bool retried;
};

struct connection {
    int fd;
    bool reused; /* has answered before */
    struct list *list;
    struct connection *previous, *next;
    struct request request;
    int64_t deadline_ns;
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
    struct list closed, idle, connecting, waiting;
};

static void list_remove(struct connection *connection) {
    struct list *list = connection->list;
    if (connection->previous != NULL) connection->previous->next = connection->next;
    else list->first = connection->next;
    if (connection->next != NULL) connection->next->previous = connection->previous;
    else list->last = connection->previous;
}

static void list_push_front(struct list *list, struct connection *connection) {
    connection->previous = NULL;
    connection->next = list->first;
    if (list->first != NULL) list->first->previous = connection;
    else list->last = connection;
    list->first = connection;
    connection->list = list;
}

static void list_push_back(struct list *list, struct connection *connection) {
    connection->next = NULL;
    connection->previous = list->last;
    if (list->last != NULL) list->last->next = connection;
    else list->first = connection;
    list->last = connection;
    connection->list = list;
}

/* To the end of a list that is ordered by deadline. */
static void await(struct list *list, struct connection *connection, int64_t deadline_ns) {
    list_remove(connection);
    connection->deadline_ns = deadline_ns;
    list_push_back(list, connection);
}

static void raise_descriptor_limit(size_t connections) {
    struct rlimit limit;
    rlim_t needed = connections + 64;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) fail_system("getrlimit");
    if (limit.rlim_cur >= needed) return;
    if (limit.rlim_max < needed)
        fail_user("%zu connections need %zu open files, the limit is %zu; lower --max-connections", connections,
                  (size_t)needed, (size_t)limit.rlim_max);
    limit.rlim_cur = needed;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) fail_system("setrlimit");
}

static void pool_begin(struct pool *pool, size_t limit) {
    raise_descriptor_limit(limit);
    pool->limit = limit;
    pool->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (pool->epoll < 0) fail_system("epoll_create1");
    pool->connections = allocate(limit, sizeof *pool->connections);
    for (size_t i = 0; i < limit; i++) {
        pool->connections[i].fd = -1;
        list_push_back(&pool->closed, &pool->connections[i]);
    }
}

static void forget_unsent(struct connection *connection) {
    free(connection->unsent);
    connection->unsent = NULL;
    connection->unsent_length = connection->unsent_at = 0;
}

static void connection_close(struct pool *pool, struct connection *connection) {
    if (connection->fd >= 0) close(connection->fd); /* which also removes it from epoll */
    connection->fd = -1;
    forget_unsent(connection);
    list_remove(connection);
    list_push_front(&pool->closed, connection);
}

static void connection_release(struct pool *pool, struct connection *connection) {
    connection->reused = true;
    list_remove(connection);
    list_push_front(&pool->idle, connection);
}

enum connect_result { CONNECT_FAILED, CONNECT_BEGUN, CONNECT_DONE };

/* After CONNECT_BEGUN the first EPOLLOUT tells that it is connected or failed. */
static enum connect_result connection_open(struct pool *pool, struct connection *connection) {
    int yes = 1;
    connection->reused = false;
    connection->fd = socket(pool->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) return CONNECT_FAILED;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    const struct sockaddr *address = (const struct sockaddr *)&pool->address;
    bool done = connect(connection->fd, address, pool->address_length) == 0;
    if (!done && errno != EINPROGRESS) return CONNECT_FAILED;
    /* Edge-triggered for both directions: one epoll_ctl in the life of a connection. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(pool->epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) fail_system("epoll_ctl");
    return done ? CONNECT_DONE : CONNECT_BEGUN;
}

static bool connection_succeeded(const struct connection *connection) {
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
}

enum write_result { WRITE_FAILED, WRITE_PARTLY, WRITE_ALL };

static enum write_result connection_flush(struct connection *connection) {
    while (connection->unsent_at < connection->unsent_length) {
        ssize_t sent = send(connection->fd, connection->unsent + connection->unsent_at,
                            connection->unsent_length - connection->unsent_at, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN ? WRITE_PARTLY : WRITE_FAILED;
        connection->unsent_at += (size_t)sent;
    }
    forget_unsent(connection);
    return WRITE_ALL;
}

static enum write_result connection_write(struct connection *connection, const char *bytes, size_t length) {
    ssize_t sent = send(connection->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return WRITE_FAILED;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    if (taken == length) return WRITE_ALL;
    connection->unsent = memcpy(allocate(length - taken, 1), bytes + taken, length - taken);
    connection->unsent_length = length - taken;
    connection->unsent_at = 0;
    return WRITE_PARTLY;
}

static void pool_end(struct pool *pool) {
    for (size_t i = 0; i < pool->limit; i++) {
        if (pool->connections[i].fd >= 0) close(pool->connections[i].fd);
        forget_unsent(&pool->connections[i]);
    }
    free(pool->connections);
    close(pool->epoll);
}

#endif
