/* Output: a JSON line per window and a summary (actuators/load/load.schema.json), or text for a person. */
#ifndef GEN_LOAD_REPORT_H
#define GEN_LOAD_REPORT_H

#include "counters.h"
#include "options.h"

struct report {
    const struct options *options;
    const struct plan *plan;
    struct text line;
    bool json, live; /* live: a status line on the terminal */
};

/* Requests in flight and open connections at the end of a window. */
struct load_state {
    size_t in_flight, connections;
};

double period_cpu_share(const struct period *period);

bool period_is_saturated(const struct period *period, const struct options *options);

/* What was found and chosen before the plan began. */
struct machine_state {
    const char *priority;
    bool cores_awake;
    double wake_late_us, spin_us; /* the first is 0 where nothing was to be chosen */
};

void report_start(struct report *report, int64_t start_ns, struct machine_state machine);

void report_window(struct report *report, const struct period *period, struct load_state state);

void report_summary(struct report *report, const struct period *total, bool interrupted);

#endif
