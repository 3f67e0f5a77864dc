/* Counts per type and window, and over the whole run. An event is counted when it happens, so that the windows of a run
 * add up exactly to its summary. */
#ifndef GEN_LOAD_COUNTERS_H
#define GEN_LOAD_COUNTERS_H

#include "base.h"

/* Log-linear buckets in µs, as in actuators/contract/histogram.py. */
enum { SUB_BUCKETS = 64, BUCKETS = 1408 };

struct histogram {
    uint64_t counts[BUCKETS];
};

static inline unsigned bucket_of(uint64_t value_us) {
    unsigned bits = value_us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(value_us);
    unsigned shift = bits > 7 ? bits - 7 : 0;
    uint64_t bucket = shift * SUB_BUCKETS + (value_us >> shift);
    return bucket < BUCKETS ? (unsigned)bucket : BUCKETS - 1;
}

static inline void histogram_record(struct histogram *histogram, int64_t value_ns) {
    histogram->counts[bucket_of(value_ns > 0 ? (uint64_t)value_ns / 1000 : 0)]++;
}

void histogram_add(struct histogram *sum, const struct histogram *part);

/* Milliseconds below which `percentile` per cent of the values lie; negative when there are none. */
double histogram_percentile_ms(const struct histogram *histogram, double percentile);

/* The status classes are part of the answered requests; requests of the other classes have no whole response. */
enum error_class {
    ERROR_CONNECT,
    ERROR_TIMEOUT,
    ERROR_CLOSED,
    ERROR_STATUS_4XX,
    ERROR_STATUS_5XX,
    ERROR_NOT_SENT,
    ERROR_CLASSES
};

extern const char *const error_names[ERROR_CLASSES];

struct counters {
    uint64_t planned, sent, answered, late, retried, sent_bytes, received_bytes;
    uint64_t repeated;         /* attempts that clients made again; not part of planned */
    uint64_t good, good_first; /* answered below 400 within the deadline, from the start of this and of the first attempt */
    uint64_t errors[ERROR_CLASSES];
    uint64_t corrected_ns, raw_ns; /* sums of the values in the histograms */
    struct histogram corrected, raw;
};

/* One window, or the whole run. */
struct period {
    double start_s, end_s, cpu_s;
    size_t type_count;
    struct counters *types;
    struct histogram send_delay; /* actual minus intended send time */
    struct histogram pick_delay; /* until a connection was picked: the engine's own share of the send delay */
    double gap_error_ns2;        /* sum of the squared differences between the gaps as sent and as planned */
    uint64_t gaps;
    uint64_t windows, saturated_windows;
};

/* Root mean square of those differences over the mean gap; of planned gaps that are fixed, their variation as sent. */
double period_gap_error(const struct period *period);

void period_begin(struct period *period, double start_s);

void period_add(struct period *sum, const struct period *part);

bool period_is_empty(const struct period *period);

#endif
