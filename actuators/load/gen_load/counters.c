#include "counters.h"

#include <math.h>

const char *const error_names[ERROR_CLASSES] = {
    "connect", "timeout", "closed", "status_4xx", "status_5xx", "not_sent"};

static double bucket_middle_us(unsigned bucket) {
    unsigned shift = bucket < 2 * SUB_BUCKETS ? 0 : bucket / SUB_BUCKETS - 1;
    double width = (double)(1ULL << shift);
    return (double)(bucket - shift * SUB_BUCKETS) * width + (shift > 0 ? width / 2 : 0);
}

void histogram_add(struct histogram *sum, const struct histogram *part) {
    for (unsigned i = 0; i < BUCKETS; i++) sum->counts[i] += part->counts[i];
}

double histogram_percentile_ms(const struct histogram *histogram, double percentile) {
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

double period_gap_error(const struct period *period) {
    double length_ns = (period->end_s - period->start_s) * 1e9;
    if (period->gaps == 0 || length_ns <= 0) return 0;
    return sqrt(period->gap_error_ns2 / (double)period->gaps) * (double)period->gaps / length_ns;
}

void period_begin(struct period *period, double start_s) {
    memset(period->types, 0, period->type_count * sizeof *period->types);
    memset(&period->send_delay, 0, sizeof period->send_delay);
    memset(&period->pick_delay, 0, sizeof period->pick_delay);
    period->gap_error_ns2 = 0, period->gaps = 0;
    period->start_s = start_s;
}

static void counters_add(struct counters *sum, const struct counters *part) {
    sum->planned += part->planned, sum->sent += part->sent, sum->answered += part->answered;
    sum->late += part->late, sum->retried += part->retried;
    sum->repeated += part->repeated, sum->good += part->good, sum->good_first += part->good_first;
    sum->sent_bytes += part->sent_bytes, sum->received_bytes += part->received_bytes;
    for (int i = 0; i < ERROR_CLASSES; i++) sum->errors[i] += part->errors[i];
    sum->corrected_ns += part->corrected_ns, sum->raw_ns += part->raw_ns;
    histogram_add(&sum->corrected, &part->corrected);
    histogram_add(&sum->raw, &part->raw);
}

void period_add(struct period *sum, const struct period *part) {
    for (size_t i = 0; i < sum->type_count; i++) counters_add(&sum->types[i], &part->types[i]);
    histogram_add(&sum->send_delay, &part->send_delay);
    histogram_add(&sum->pick_delay, &part->pick_delay);
    sum->gap_error_ns2 += part->gap_error_ns2, sum->gaps += part->gaps;
    sum->end_s = part->end_s;
    sum->cpu_s += part->cpu_s;
    sum->windows++;
}

bool period_is_empty(const struct period *period) {
    for (size_t i = 0; i < period->type_count; i++) {
        const struct counters *type = &period->types[i];
        uint64_t events = type->planned | type->sent | type->answered | type->retried | type->repeated;
        for (int k = 0; k < ERROR_CLASSES; k++) events |= type->errors[k];
        if (events != 0) return false;
    }
    return true;
}
