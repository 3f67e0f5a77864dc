/* From "http://HOST:PORT" to an address that accepts connections; anything else is the user's error. */
#ifndef GEN_LOAD_TARGET_H
#define GEN_LOAD_TARGET_H

#include "connections.h"

#include <poll.h>

struct target {
    char host[256], port[8];
    char authority[272]; /* HOST:PORT as the Host header wants it */
};

static struct target parse_target(const char *url) {
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

/* Fills the pool's address with the first one that accepts a connection. */
static void reach_target(const struct target *target, struct pool *pool, double timeout_s) {
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

#endif
