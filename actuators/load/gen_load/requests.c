#include "requests.h"

enum {
    TEXT_CHARACTERS = 256,
    URL_CHARACTERS = 64,
    MOST_MENTIONS = 6,
    MOST_URLS = 6,
    MOST_MEDIA = 5,
    TIMELINE_LENGTH = 10,
    LAST_TIMELINE_START = 100,
};

static void add_random_characters(struct text *text, struct random *random, const char *alphabet, uint32_t letters,
                                  size_t count) {
    text_reserve(text, count);
    for (size_t i = 0; i < count; i++) text->data[text->length++] = alphabet[random_below(random, letters)];
    text->data[text->length] = '\0';
}

static void add_alphanumeric(struct text *text, struct random *random, size_t count) {
    static const char alphabet[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    add_random_characters(text, random, alphabet, sizeof alphabet - 1, count);
}

static void add_mentions(struct text *text, struct random *random, uint32_t users, uint32_t author) {
    uint32_t count = 1 + random_below(random, MOST_MENTIONS);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t user = random_below(random, users);
        if (user == author) user = (user + 1) % users; /* users do not mention themselves */
        text_add(text, " @username_%u", user);
    }
}

static void add_media(struct text *text, struct random *random) {
    uint32_t count = 1 + random_below(random, MOST_MEDIA);
    text_add(text, "&media_ids=[");
    for (uint32_t i = 0; i < count; i++) {
        text_add(text, i == 0 ? "\"" : ",\"");
        add_random_characters(text, random, "0123456789", 10, 18);
        text_add(text, "\"");
    }
    text_add(text, "]&media_types=[");
    for (uint32_t i = 0; i < count; i++) text_add(text, i == 0 ? "\"png\"" : ",\"png\"");
    text_add(text, "]");
}

/* The form is not percent-encoded, because the original scripts do not encode it. */
static void write_compose_body(struct text *body, struct random *random, uint32_t users) {
    uint32_t author = random_below(random, users);
    text_add(body, "username=username_%u&user_id=%u&text=", author, author);
    add_alphanumeric(body, random, TEXT_CHARACTERS);
    add_mentions(body, random, users, author);
    uint32_t urls = 1 + random_below(random, MOST_URLS);
    for (uint32_t i = 0; i < urls; i++) {
        text_add(body, " http://");
        add_alphanumeric(body, random, URL_CHARACTERS);
    }
    add_media(body, random);
    text_add(body, "&post_type=0");
}

/* How many posts a read asks for where requests differ in cost: actuators/social_network/costs.py has the same shares. */
static uint32_t draw_span(struct random *random) {
    static const struct {
        uint32_t below, span;
    } spans[] = {{25, 2}, {45, 5}, {65, 10}, {80, 20}, {92, 40}, {100, 80}};
    uint32_t drawn = random_below(random, 100), i = 0;
    while (drawn >= spans[i].below) i++;
    return spans[i].span;
}

/* What every request has is copied: formatting it would take 2 % of the engine's CPU time per request. */
static void put(struct text *text, const char *string) { text_put(text, string, strlen(string)); }

static void add_request_line(struct request_writer *writer, const struct stream *stream, struct random *random) {
    struct text *bytes = &writer->bytes;
    put(bytes, stream->method), put(bytes, " "), put(bytes, stream->path);
    if (stream->body == BODY_TIMELINE || stream->body == BODY_SPANS) {
        uint32_t start = random_below(random, LAST_TIMELINE_START + 1);
        uint32_t span = stream->body == BODY_SPANS ? draw_span(random) : TIMELINE_LENGTH;
        text_add(bytes, "%cuser_id=%u&start=%u&stop=%u", strchr(stream->path, '?') ? '&' : '?',
                 random_below(random, writer->users), start, start + span);
    }
    put(bytes, " HTTP/1.1\r\nHost: "), put(bytes, writer->host), put(bytes, "\r\n");
}

static void add_body(struct text *bytes, const char *body, size_t length) {
    text_add(bytes, "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %zu\r\n\r\n", length);
    text_put(bytes, body, length);
}

void write_request(struct request_writer *writer, const struct stream *stream, size_t index, uint64_t ordinal) {
    struct random random = random_for(writer->seed, FOR_REQUESTS, ((uint64_t)index << 48) + ordinal);
    writer->bytes.length = writer->body.length = 0;
    add_request_line(writer, stream, &random);
    put(&writer->bytes, "X-Request-Sequence: "), put(&writer->bytes, stream->type), put(&writer->bytes, "-");
    text_put_number(&writer->bytes, ordinal);
    put(&writer->bytes, "\r\n");
    if (stream->body == BODY_COMPOSE) {
        write_compose_body(&writer->body, &random, writer->users);
        add_body(&writer->bytes, writer->body.data, writer->body.length);
    } else if (stream->body == BODY_FILE)
        add_body(&writer->bytes, stream->body_bytes, stream->body_length);
    else
        put(&writer->bytes, "\r\n");
}
