/* Follows one HTTP/1.1 response as its bytes arrive; keeps the status and drops the body.
 *
 * Bodies by Content-Length, chunked, or until the connection closes (RFC 9112, section 6.3). */
#ifndef GEN_LOAD_RESPONSES_H
#define GEN_LOAD_RESPONSES_H

#include "base.h"

enum response_state {
    STATUS_LINE,
    HEADERS,
    BODY,
    CHUNK_SIZE,
    CHUNK_DATA,
    CHUNK_END,
    TRAILERS,
    UNTIL_CLOSE,
    COMPLETE,
    MALFORMED,
};

enum { LINE_LIMIT = 256 };

struct response {
    enum response_state state;
    int status;
    bool begun, keep_alive, chunked, has_length, head;
    uint64_t remaining;
    size_t line_length;
    char line[LINE_LIMIT]; /* only the beginning of a longer line is kept; no long header is needed */
};

/* `head`: the request was a HEAD, whose response has no body. */
void response_begin(struct response *response, bool head);

/* Takes bytes. Bytes after a complete response were not requested: such a connection is not used again. */
void response_feed(struct response *response, const char *data, size_t length);

#endif
