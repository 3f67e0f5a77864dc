#include "responses.h"

#include <strings.h>

void response_begin(struct response *response, bool head) {
    response->state = STATUS_LINE;
    response->status = 0;
    response->begun = response->chunked = response->has_length = false;
    response->keep_alive = true;
    response->head = head;
    response->remaining = 0;
    response->line_length = 0;
}

/* Takes bytes up to a line end; true when response->line holds a whole line, without its end. */
static bool take_line(struct response *response, const char **data, const char *end) {
    const char *newline = memchr(*data, '\n', (size_t)(end - *data));
    const char *stop = newline != NULL ? newline : end;
    size_t room = LINE_LIMIT - 1 - response->line_length;
    size_t length = (size_t)(stop - *data) < room ? (size_t)(stop - *data) : room;
    memcpy(response->line + response->line_length, *data, length);
    response->line_length += length;
    *data = newline != NULL ? newline + 1 : end;
    if (newline == NULL) return false;
    if (response->line_length > 0 && response->line[response->line_length - 1] == '\r') response->line_length--;
    response->line[response->line_length] = '\0';
    response->line_length = 0;
    return true;
}

/* "HTTP/1.x NNN reason". Not by sscanf, which would take a tenth of the engine's CPU time per request. */
static enum response_state parse_status_line(struct response *response) {
    const char *line = response->line, *code = line + 9;
    if (strncmp(line, "HTTP/1.", 7) != 0 || line[7] == '\0' || line[8] != ' ') return MALFORMED;
    for (int i = 0; i < 3; i++)
        if (code[i] < '0' || code[i] > '9') return MALFORMED;
    response->status = (code[0] - '0') * 100 + (code[1] - '0') * 10 + (code[2] - '0');
    response->keep_alive = line[7] != '0';
    return response->status >= 100 ? HEADERS : MALFORMED;
}

static const char *header_value(const char *line, const char *name) {
    size_t length = strlen(name);
    if (strncasecmp(line, name, length) != 0 || line[length] != ':') return NULL;
    return line + length + 1 + strspn(line + length + 1, " \t");
}

static bool parse_header(struct response *response) {
    const char *value;
    if ((value = header_value(response->line, "Content-Length")) != NULL) {
        char *end;
        errno = 0;
        response->remaining = strtoull(value, &end, 10);
        response->has_length = true;
        return end != value && errno == 0 && *value != '-';
    }
    if ((value = header_value(response->line, "Transfer-Encoding")) != NULL)
        response->chunked = strcasestr(value, "chunked") != NULL;
    if ((value = header_value(response->line, "Connection")) != NULL)
        response->keep_alive = strcasestr(value, "close") == NULL;
    return true;
}

static enum response_state after_headers(struct response *response) {
    if (response->status < 200) return STATUS_LINE; /* 1xx announces another response */
    if (response->head || response->status == 204 || response->status == 304) return COMPLETE;
    if (response->chunked) return CHUNK_SIZE;
    if (response->has_length) return response->remaining > 0 ? BODY : COMPLETE;
    response->keep_alive = false;
    return UNTIL_CLOSE;
}

static enum response_state parse_chunk_size(struct response *response) {
    char *end;
    errno = 0;
    response->remaining = strtoull(response->line, &end, 16);
    if (end == response->line || errno != 0 || response->line[0] == '-') return MALFORMED;
    return response->remaining > 0 ? CHUNK_DATA : TRAILERS;
}

static enum response_state parse_line(struct response *response) {
    bool empty = response->line[0] == '\0';
    switch (response->state) {
    case STATUS_LINE: return parse_status_line(response);
    case HEADERS:
        if (empty) return after_headers(response);
        return parse_header(response) ? HEADERS : MALFORMED;
    case CHUNK_SIZE: return parse_chunk_size(response);
    case CHUNK_END: return empty ? CHUNK_SIZE : MALFORMED;
    case TRAILERS: return empty ? COMPLETE : TRAILERS;
    default: return MALFORMED;
    }
}

void response_feed(struct response *response, const char *data, size_t length) {
    const char *end = data + length;
    response->begun = response->begun || length > 0;
    while (data < end && response->state != MALFORMED) {
        if (response->state == UNTIL_CLOSE) return;
        if (response->state == BODY || response->state == CHUNK_DATA) {
            uint64_t available = (uint64_t)(end - data);
            uint64_t taken = available < response->remaining ? available : response->remaining;
            data += taken;
            response->remaining -= taken;
            if (response->remaining == 0) response->state = response->state == BODY ? COMPLETE : CHUNK_END;
        } else if (response->state == COMPLETE) {
            response->keep_alive = false;
            return;
        } else if (take_line(response, &data, end))
            response->state = parse_line(response);
    }
}
