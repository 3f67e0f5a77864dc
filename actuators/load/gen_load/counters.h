/* What is counted: per type and window, and over the whole run. Everything is counted when it happens, so
 * that the windows of a run add up exactly to its summary. */
#ifndef GEN_LOAD_COUNTERS_H
#define GEN_LOAD_COUNTERS_H

#include "base.h"

/* Log-linear buckets in µs, as in actuators/contract/histogram.py. */
enum { SUB_BUCKETS = 64, BUCKETS = 1408 };

struct histogram {
    uint64_t counts[BUCKETS];
};

static unsigned bucket_of(uint64_t value_us) {
    unsigned bits = value_us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(value_us);
    unsigned shift = bits > 7 ? bits - 7 : 0;
    uint64_t bucket = shift * SUB_BUCKETS + (value_us >> shift);
    return bucket < BUCKETS ? (unsigned)bucket : BUCKETS - 1;
}

static double bucket_middle_us(unsigned bucket) {
    unsigned shift = bucket < 2 * SUB_BUCKETS ? 0 : bucket / SUB_BUCKETS - 1;
    double width = (double)(1ULL << shift);
    return (double)(bucket - shift * SUB_BUCKETS) * width + (shift > 0 ? width / 2 : 0);
}

static void histogram_record(struct histogram *histogram, int64_t value_ns) {
    histogram->counts[bucket_of(value_ns > 0 ? (uint64_t)value_ns / 1000 : 0)]++;
}

static void histogram_add(struct histogram *sum, const struct histogram *part) {
    for (unsigned i = 0; i < BUCKETS; i++) sum->counts[i] += part->counts[i];
}

/* Milliseconds below which `percentile` per cent of the values lie; negative when there are none. */
static double histogram_percentile_ms(const struct histogram *histogram, double percentile) {
    uint64_t total = 0, seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) total += histogram->counts[i];
    if (total == 0) return -1.0;
    double rank = percentile / 100.0 * (double)total;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen > 0 && (double)seen >= rank) return bucket_middle_us(i) / 1e3;
    }
    return bucket_middle_us(BUCKETS - 1) / 1e3;
}

/* The status classes are part of the answered requests; the others never got a whole answer. */
enum error_class {
    ERROR_CONNECT,
    ERROR_TIMEOUT,
    ERROR_CLOSED,
    ERROR_STATUS_4XX,
    ERROR_STATUS_5XX,
    ERROR_NOT_SENT,
    ERROR_CLASSES
};

static const char *const error_names[ERROR_CLASSES] = {"connect",    "timeout",    "closed",
                                                       "status_4xx", "status_5xx", "not_sent"};

struct counters {
    uint64_t planned, sent, answered, late, retried, sent_bytes, received_bytes;
    uint64_t errors[ERROR_CLASSES];
    uint64_t corrected_ns, raw_ns; /* sums over what the histograms hold */
    struct histogram corrected, raw;
};

/* A stretch of the run: one window, or all of it. */
struct period {
    double start_s, end_s, cpu_s;
    size_t type_count;
    struct counters *types;
    struct histogram send_delay; /* actual minus intended send time */
    struct histogram pick_delay; /* until a connection was picked: our own share of the send delay */
    uint64_t windows, saturated_windows;
};

static void period_begin(struct period *period, double start_s) {
    memset(period->types, 0, period->type_count * sizeof *period->types);
    memset(&period->send_delay, 0, sizeof period->send_delay);
    memset(&period->pick_delay, 0, sizeof period->pick_delay);
    period->start_s = start_s;
}

static void counters_add(struct counters *sum, const struct counters *part) {
    sum->planned += part->planned, sum->sent += part->sent, sum->answered += part->answered;
    sum->late += part->late, sum->retried += part->retried;
    sum->sent_bytes += part->sent_bytes, sum->received_bytes += part->received_bytes;
    for (int i = 0; i < ERROR_CLASSES; i++) sum->errors[i] += part->errors[i];
    sum->corrected_ns += part->corrected_ns, sum->raw_ns += part->raw_ns;
    histogram_add(&sum->corrected, &part->corrected);
    histogram_add(&sum->raw, &part->raw);
}

static void period_add(struct period *sum, const struct period *part) {
    for (size_t i = 0; i < sum->type_count; i++) counters_add(&sum->types[i], &part->types[i]);
    histogram_add(&sum->send_delay, &part->send_delay);
    histogram_add(&sum->pick_delay, &part->pick_delay);
    sum->end_s = part->end_s;
    sum->cpu_s += part->cpu_s;
    sum->windows++;
}

static bool period_is_empty(const struct period *period) {
    for (size_t i = 0; i < period->type_count; i++) {
        const struct counters *type = &period->types[i];
        uint64_t events = type->planned | type->sent | type->answered | type->retried;
        for (int k = 0; k < ERROR_CLASSES; k++) events |= type->errors[k];
        if (events != 0) return false;
    }
    return true;
}

#endif
