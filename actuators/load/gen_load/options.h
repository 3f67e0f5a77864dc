/* The command line of gen_load. */
#ifndef GEN_LOAD_OPTIONS_H
#define GEN_LOAD_OPTIONS_H

#include "plan.h"

enum output { OUTPUT_AUTO, OUTPUT_JSON, OUTPUT_TEXT };

struct options {
    const char *target, *plan_path, *requests_csv;
    uint64_t seed;
    double duration_s, window_s, timeout_s, connect_timeout_s;
    double spin_us;
    double saturated_cpu_share, saturated_delay_ms;
    struct random_bounds random;
    uint64_t max_connections, users;
    enum output output;
    bool normal_priority, allow_cpu_idle, dump_schedule, print_plan;
};

/* `--name value` or `--name=value`; flags stand alone. Exits with one line for a wrong argument. */
struct options parse_options(int count, char **arguments);

#endif
