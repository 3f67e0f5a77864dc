#include "clients.h"

static bool is_before(const struct request *a, const struct request *b) { return a->due_ns < b->due_ns; }

static void add(struct repeats *repeats, const struct request *request) {
    if (repeats->count == repeats->capacity) {
        repeats->capacity = repeats->capacity > 0 ? 2 * repeats->capacity : 256;
        repeats->requests = resize(repeats->requests, repeats->capacity, sizeof *repeats->requests);
    }
    size_t place = repeats->count++;
    while (place > 0 && is_before(request, &repeats->requests[(place - 1) / 2])) {
        repeats->requests[place] = repeats->requests[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    repeats->requests[place] = *request;
}

struct request take_repeat(struct repeats *repeats) {
    struct request first = repeats->requests[0], last = repeats->requests[--repeats->count];
    size_t place = 0;
    for (;;) {
        size_t child = 2 * place + 1;
        if (child >= repeats->count) break;
        if (child + 1 < repeats->count && is_before(&repeats->requests[child + 1], &repeats->requests[child])) child++;
        if (!is_before(&repeats->requests[child], &last)) break;
        repeats->requests[place] = repeats->requests[child];
        place = child;
    }
    repeats->requests[place] = last;
    return first;
}

void repeat_later(struct repeats *repeats, const struct stream *stream, const struct request *request, bool refused,
                  uint64_t seed, int64_t now) {
    const struct clients *clients = &stream->clients;
    if (request->attempt >= clients->retries) return;
    struct random random = random_for(seed, FOR_CLIENTS, mix64(request->stream) ^ (request->ordinal << 8 | request->attempt));
    if (random_uniform(&random) >= (refused ? clients->retry_refused : clients->retry_failed)) return;
    struct request next = {.stream = request->stream, .ordinal = request->ordinal, .first_ns = request->first_ns};
    next.attempt = request->attempt + 1;
    next.due_ns = now + seconds_to_ns(clients->backoff_s * random_between(&random, 0.5, 1.5));
    add(repeats, &next);
}
