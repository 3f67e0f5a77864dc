#include "report.h"

#include <unistd.h>

static void report_flush(struct report *report) {
    size_t done = 0;
    while (done < report->line.length) {
        ssize_t written = write(STDOUT_FILENO, report->line.data + done, report->line.length - done);
        if (written < 0 && errno != EINTR) fail_system("writing the report");
        if (written > 0) done += (size_t)written;
    }
    report->line.length = 0;
}

static void add_histogram(struct text *line, const char *name, const struct histogram *histogram) {
    const char *separator = "";
    text_add(line, ",\"%s\":[", name);
    for (unsigned i = 0; i < BUCKETS; i++) {
        if (histogram->counts[i] == 0) continue;
        text_add(line, "%s[%u,%llu]", separator, i, (unsigned long long)histogram->counts[i]);
        separator = ",";
    }
    text_add(line, "]");
}

static void add_percentiles(struct text *line, const char *name, const struct histogram *histogram, uint64_t sum_ns) {
    static const double percentiles[] = {50, 75, 90, 95, 99, 99.9, 99.99};
    uint64_t count = 0;
    for (unsigned i = 0; i < BUCKETS; i++) count += histogram->counts[i];
    text_add(line, ",\"%s\":", name);
    if (count == 0) {
        text_add(line, "null");
        return;
    }
    text_add(line, "{\"mean\":%.6g", (double)sum_ns / 1e6 / (double)count);
    for (size_t i = 0; i < sizeof percentiles / sizeof *percentiles; i++)
        text_add(line, ",\"p%g\":%.6g", percentiles[i], histogram_percentile_ms(histogram, percentiles[i]));
    text_add(line, "}");
}

static void add_type(struct text *line, const char *type, const struct counters *counters) {
    text_add(line, "\"%s\":{\"planned\":%llu,\"sent\":%llu,\"answered\":%llu,\"late\":%llu,\"retried\":%llu", type,
             (unsigned long long)counters->planned, (unsigned long long)counters->sent,
             (unsigned long long)counters->answered, (unsigned long long)counters->late,
             (unsigned long long)counters->retried);
    text_add(line, ",\"repeated\":%llu,\"good\":%llu,\"good_first\":%llu", (unsigned long long)counters->repeated,
             (unsigned long long)counters->good, (unsigned long long)counters->good_first);
    text_add(line, ",\"sent_bytes\":%llu,\"received_bytes\":%llu,\"errors\":{",
             (unsigned long long)counters->sent_bytes, (unsigned long long)counters->received_bytes);
    for (int i = 0; i < ERROR_CLASSES; i++)
        text_add(line, "%s\"%s\":%llu", i ? "," : "", error_names[i], (unsigned long long)counters->errors[i]);
    text_add(line, "},\"corrected_us_sum\":%.3f,\"raw_us_sum\":%.3f", (double)counters->corrected_ns / 1e3,
             (double)counters->raw_ns / 1e3);
    add_percentiles(line, "corrected_ms", &counters->corrected, counters->corrected_ns);
    add_percentiles(line, "raw_ms", &counters->raw, counters->raw_ns);
    add_histogram(line, "corrected_counts", &counters->corrected);
    add_histogram(line, "raw_counts", &counters->raw);
    text_add(line, "}");
}

double period_cpu_share(const struct period *period) {
    double duration_s = period->end_s - period->start_s;
    return duration_s > 0 ? period->cpu_s / duration_s : 0.0;
}

bool period_is_saturated(const struct period *period, const struct options *options) {
    return period_cpu_share(period) > options->saturated_cpu_share ||
           histogram_percentile_ms(&period->pick_delay, 99) > options->saturated_delay_ms;
}

static void add_period(struct text *line, const struct plan *plan, const struct period *period) {
    text_add(line, ",\"start_s\":%.6f,\"end_s\":%.6f,\"cpu_share\":%.4f", period->start_s, period->end_s,
             period_cpu_share(period));
    double p50_ms = histogram_percentile_ms(&period->send_delay, 50);
    double p99_ms = histogram_percentile_ms(&period->send_delay, 99);
    text_add(line, ",\"send_delay_ms\":{\"p50\":%.6g,\"p99\":%.6g}", p50_ms < 0 ? 0 : p50_ms, p99_ms < 0 ? 0 : p99_ms);
    text_add(line, ",\"gap_error\":%.6g", period_gap_error(period));
    text_add(line, ",\"types\":{");
    for (size_t i = 0; i < period->type_count; i++) {
        if (i > 0) text_add(line, ",");
        add_type(line, plan->streams[i].type, &period->types[i]);
    }
    text_add(line, "}}\n");
}

void report_start(struct report *report, int64_t start_ns, struct machine_state machine) {
    if (!report->json) return;
    double age_s = ns_to_seconds(now_ns() - start_ns);
    text_add(&report->line, "{\"kind\":\"start\",\"version\":1,\"target\":\"%s\",\"seed\":%llu,\"duration_s\":%.9g",
             report->options->target, (unsigned long long)report->options->seed, report->options->duration_s);
    text_add(&report->line, ",\"priority\":\"%s\",\"cores_awake\":%s,\"wake_late_us\":%.1f,\"spin_us\":%.1f",
             machine.priority, machine.cores_awake ? "true" : "false", machine.wake_late_us, machine.spin_us);
    text_add(&report->line, ",\"monotonic_s\":%.9f,\"unix_s\":%.6f}\n",
             ns_to_seconds(start_ns), ns_to_seconds(clock_ns(CLOCK_REALTIME)) - age_s);
    report_flush(report);
}

static uint64_t period_sum(const struct period *period, size_t offset) {
    uint64_t sum = 0;
    for (size_t i = 0; i < period->type_count; i++)
        sum += *(const uint64_t *)(const void *)((const char *)&period->types[i] + offset);
    return sum;
}

#define PERIOD_SUM(period, field) period_sum(period, offsetof(struct counters, field))

static uint64_t period_errors(const struct period *period) {
    uint64_t sum = 0;
    for (size_t i = 0; i < period->type_count; i++)
        for (int k = 0; k < ERROR_CLASSES; k++) sum += period->types[i].errors[k];
    return sum;
}

/* Of all types together. */
static double corrected_percentile_ms(const struct period *period, double percentile) {
    struct histogram all = {{0}};
    for (size_t i = 0; i < period->type_count; i++) histogram_add(&all, &period->types[i].corrected);
    return histogram_percentile_ms(&all, percentile);
}

static void show_status(const struct report *report, const struct period *period, struct load_state state) {
    double left_s = fmax(report->options->duration_s - period->end_s, 0.0), length_s = period->end_s - period->start_s;
    fprintf(stderr, "\r\033[K%02d:%02d left  %.0f requests/s  p99 %.1f ms  errors %llu  in flight %zu%s",
            (int)left_s / 60, (int)left_s % 60, (double)PERIOD_SUM(period, sent) / length_s,
            corrected_percentile_ms(period, 99), (unsigned long long)period_errors(period),
            state.in_flight, period_is_saturated(period, report->options) ? "  SATURATED" : "");
    fflush(stderr);
}

void report_window(struct report *report, const struct period *period, struct load_state state) {
    if (report->live) show_status(report, period, state);
    if (!report->json) return;
    text_add(&report->line, "{\"kind\":\"window\",\"saturated\":%s,\"in_flight\":%zu,\"connections\":%zu",
             period_is_saturated(period, report->options) ? "true" : "false", state.in_flight, state.connections);
    add_period(&report->line, report->plan, period);
    report_flush(report);
}

static void add_summary_text(struct text *line, const struct report *report, const struct period *total) {
    text_add(line, "%-12s %10s %10s %10s %8s %9s %9s %9s %9s %9s\n", "type", "planned", "sent", "answered", "errors",
             "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "raw p99");
    for (size_t i = 0; i < total->type_count; i++) {
        const struct counters *type = &total->types[i];
        uint64_t errors = 0;
        for (int k = 0; k < ERROR_CLASSES; k++) errors += type->errors[k];
        text_add(line, "%-12s %10llu %10llu %10llu %8llu", report->plan->streams[i].type,
                 (unsigned long long)type->planned, (unsigned long long)type->sent, (unsigned long long)type->answered,
                 (unsigned long long)errors);
        const double percentiles[] = {50, 90, 99, 99.9};
        for (int k = 0; k < 4; k++) text_add(line, " %9.3f", histogram_percentile_ms(&type->corrected, percentiles[k]));
        text_add(line, " %9.3f\n", histogram_percentile_ms(&type->raw, 99));
    }
    text_add(line, "%.1f s, %.0f requests/s sent, %.0f answered; cpu %.0f %%, send delay p99 %.3f ms", total->end_s,
             (double)PERIOD_SUM(total, sent) / total->end_s, (double)PERIOD_SUM(total, answered) / total->end_s,
             100 * period_cpu_share(total), histogram_percentile_ms(&total->send_delay, 99));
    text_add(line, "; %llu of %llu windows saturated\n", (unsigned long long)total->saturated_windows,
             (unsigned long long)total->windows);
}

void report_summary(struct report *report, const struct period *total, bool interrupted) {
    if (report->live) fputs("\r\033[K", stderr);
    if (report->json) {
        text_add(&report->line, "{\"kind\":\"summary\",\"interrupted\":%s,\"complete\":true",
                 interrupted ? "true" : "false");
        text_add(&report->line, ",\"windows\":%llu,\"saturated_windows\":%llu", (unsigned long long)total->windows,
                 (unsigned long long)total->saturated_windows);
        add_period(&report->line, report->plan, total);
    } else
        add_summary_text(&report->line, report, total);
    report_flush(report);
}
