#include "connections.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

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

void await(struct list *list, struct connection *connection, int64_t deadline_ns) {
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

void pool_begin(struct pool *pool, size_t limit, size_t streams) {
    raise_descriptor_limit(limit);
    pool->limit = limit;
    pool->waiting_count = streams;
    pool->waiting = allocate(streams, sizeof *pool->waiting);
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

void pool_end(struct pool *pool) {
    for (size_t i = 0; i < pool->limit; i++) {
        if (pool->connections[i].fd >= 0) close(pool->connections[i].fd);
        forget_unsent(&pool->connections[i]);
    }
    free(pool->connections);
    free(pool->waiting);
    close(pool->epoll);
}

void connection_close(struct pool *pool, struct connection *connection) {
    if (connection->fd >= 0) close(connection->fd); /* which also removes it from epoll */
    connection->fd = -1;
    forget_unsent(connection);
    list_remove(connection);
    list_push_front(&pool->closed, connection);
}

void connection_release(struct pool *pool, struct connection *connection) {
    connection->reused = true;
    list_remove(connection);
    list_push_front(&pool->idle, connection);
}

enum connect_result connection_open(struct pool *pool, struct connection *connection) {
    int yes = 1;
    connection->reused = false;
    connection->fd = socket(pool->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) return CONNECT_FAILED;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(connection->fd, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
    const struct sockaddr *address = (const struct sockaddr *)&pool->address;
    bool done = connect(connection->fd, address, pool->address_length) == 0;
    if (!done && errno != EINPROGRESS) return CONNECT_FAILED;
    /* Edge-triggered for both directions: one epoll_ctl in the life of a connection. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = connection};
    if (epoll_ctl(pool->epoll, EPOLL_CTL_ADD, connection->fd, &event) != 0) fail_system("epoll_ctl");
    return done ? CONNECT_DONE : CONNECT_BEGUN;
}

bool connection_succeeded(const struct connection *connection) {
    int error = 0;
    socklen_t length = sizeof error;
    return getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
}

enum write_result connection_flush(struct connection *connection) {
    while (connection->unsent_at < connection->unsent_length) {
        ssize_t sent = send(connection->fd, connection->unsent + connection->unsent_at,
                            connection->unsent_length - connection->unsent_at, MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN ? WRITE_PARTLY : WRITE_FAILED;
        connection->unsent_at += (size_t)sent;
    }
    forget_unsent(connection);
    return WRITE_ALL;
}

enum write_result connection_write(struct connection *connection, const char *bytes, size_t length) {
    ssize_t sent = send(connection->fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return WRITE_FAILED;
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    if (taken == length) return WRITE_ALL;
    connection->unsent = memcpy(allocate(length - taken, 1), bytes + taken, length - taken);
    connection->unsent_length = length - taken;
    connection->unsent_at = 0;
    return WRITE_PARTLY;
}

#define OFFSET_ERROR_NS 20000LL /* between two readings of clocks whose difference changes only when one is set */

ssize_t connection_read(struct pool *pool, struct connection *connection, char *buffer, size_t size,
                        int64_t *arrived_ns) {
    union {
        char bytes[CMSG_SPACE(sizeof(struct timespec))];
        struct cmsghdr aligned;
    } control;
    struct iovec room = {buffer, size};
    struct msghdr message = {
        .msg_iov = &room, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(connection->fd, &message, 0);
    if (got < 0) return got;
    int64_t now = *arrived_ns = now_ns();
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    pool->stamps = header != NULL && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_TIMESTAMPNS;
    if (!pool->stamps) return got;
    struct timespec stamp;
    memcpy(&stamp, CMSG_DATA(header), sizeof stamp);
    int64_t offset_ns = clock_ns(CLOCK_REALTIME) - now, known_ns = pool->wall_offset_ns;
    pool->wall_offset_ns = offset_ns;
    if (llabs(offset_ns - known_ns) > OFFSET_ERROR_NS) return got;
    int64_t stamp_ns = (int64_t)stamp.tv_sec * NS_PER_S + stamp.tv_nsec - offset_ns;
    if (stamp_ns < now) *arrived_ns = stamp_ns;
    return got;
}

struct target parse_target(const char *url) {
    struct target target = {.port = "80"};
    if (strncmp(url, "https://", 8) == 0) fail_user("target '%s': TLS is not supported; use http://", url);
    const char *rest = strncmp(url, "http://", 7) == 0 ? url + 7 : url;
    char tail[64] = "";
    int fields = sscanf(rest, "[%255[0-9A-Fa-f:.]]:%7[0-9]%63s", target.host, target.port, tail);
    bool v6 = fields >= 1;
    if (!v6) fields = sscanf(rest, "%255[A-Za-z0-9._-]:%7[0-9]%63s", target.host, target.port, tail);
    int port = atoi(target.port);
    if (fields < 2 || port < 1 || port > 65535 || (tail[0] != '\0' && strcmp(tail, "/") != 0))
        fail_user("target '%s' is not http://HOST:PORT", url);
    snprintf(target.authority, sizeof target.authority, v6 ? "[%s]:%s" : "%s:%s", target.host, target.port);
    return target;
}

/* 0 or the errno of a connection attempt. */
static int try_connect(const struct addrinfo *address, double timeout_s) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    int error = connect(fd, address->ai_addr, address->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        socklen_t length = sizeof error;
        if (poll(&wait, 1, (int)(timeout_s * 1e3)) != 1) error = ETIMEDOUT;
        else getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    }
    close(fd);
    return error;
}

void reach_target(const struct target *target, struct pool *pool, double timeout_s) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(target->host, target->port, &hints, &found);
    if (error != 0) fail_user("target host '%s': %s", target->host, gai_strerror(error));
    for (const struct addrinfo *address = found; address != NULL; address = address->ai_next) {
        error = try_connect(address, timeout_s);
        if (error != 0) continue;
        memcpy(&pool->address, address->ai_addr, address->ai_addrlen);
        pool->address_length = address->ai_addrlen;
        break;
    }
    freeaddrinfo(found);
    if (error != 0) fail_user("target %s does not accept connections: %s", target->authority, strerror(error));
}
