/* One table serves parsing and help. glibc's argp was tried: no line less, and its errors take two lines. */
#include "options.h"

static const struct options default_options = {
    .target = "http://127.0.0.1:8080",
    .seed = 1,
    .duration_s = 600.0,
    .window_s = 1.0,
    .timeout_s = 10.0,
    .connect_timeout_s = 3.0,
    .saturated_cpu_share = 0.9,
    .saturated_delay_ms = 10.0,
    .random = {100.0, 2000.0, 30.0, 600.0, 10.0, 100.0},
    .max_connections = 2048,
    .users = 962,
};

enum option_kind { OPTION_TEXT, OPTION_COUNT, OPTION_NUMBER, OPTION_FLAG, OPTION_OUTPUT };

struct option_row {
    const char *name;
    enum option_kind kind;
    void *value;
    double minimum, maximum; /* what can be timed, sent and kept */
    const char *help;
};

enum { OPTION_ROWS = 24 };

static void option_table(struct options *o, struct option_row rows[OPTION_ROWS]) {
    const struct option_row table[OPTION_ROWS] = {
        {"target", OPTION_TEXT, &o->target, 0, 0, "http://HOST:PORT of the NGINX"},
        {"plan", OPTION_TEXT, &o->plan_path, 0, 0, "plan file (see plan.h); a random plan without it"},
        {"seed", OPTION_COUNT, &o->seed, 0, 1.9e19, "of the plan, the arrivals and the requests"},
        {"duration-s", OPTION_NUMBER, &o->duration_s, MIN_TIME_S, MAX_TIME_S, "total time"},
        {"window-s", OPTION_NUMBER, &o->window_s, MIN_TIME_S, MAX_TIME_S, "length of a reported window"},
        {"timeout-s", OPTION_NUMBER, &o->timeout_s, MIN_TIME_S, MAX_TIME_S, "longest wait for a response or a free connection"},
        {"connect-timeout-s", OPTION_NUMBER, &o->connect_timeout_s, MIN_TIME_S, MAX_TIME_S, "longest wait for a connection to open"},
        {"spin-us", OPTION_NUMBER, &o->spin_us, 0, 1e6, "busy-wait this long before a send; 0: as fixed gaps need it here"},
        {"max-connections", OPTION_COUNT, &o->max_connections, 1, 60000, "most connections open at once"},
        {"users", OPTION_COUNT, &o->users, 2, 1e9, "users that the requests name"},
        {"min-rate-rps", OPTION_NUMBER, &o->random.min_rate_rps, 1e-6, MAX_RATE_RPS, "random plan: lowest rate of a burst"},
        {"max-rate-rps", OPTION_NUMBER, &o->random.max_rate_rps, 1e-6, MAX_RATE_RPS, "random plan: highest rate of a burst"},
        {"min-burst-s", OPTION_NUMBER, &o->random.min_burst_s, MIN_TIME_S, MAX_TIME_S, "random plan: shortest burst"},
        {"max-burst-s", OPTION_NUMBER, &o->random.max_burst_s, MIN_TIME_S, MAX_TIME_S, "random plan: longest burst"},
        {"min-backoff-s", OPTION_NUMBER, &o->random.min_backoff_s, MIN_TIME_S, MAX_TIME_S, "random plan: shortest pause"},
        {"max-backoff-s", OPTION_NUMBER, &o->random.max_backoff_s, MIN_TIME_S, MAX_TIME_S, "random plan: longest pause"},
        {"saturated-cpu-share", OPTION_NUMBER, &o->saturated_cpu_share, 1e-6, 1e6, "more CPU in a window marks it as saturated"},
        {"saturated-delay-ms", OPTION_NUMBER, &o->saturated_delay_ms, 1e-6, 1e9, "and so does a higher p99 of the engine's own delay"},
        {"requests-csv", OPTION_TEXT, &o->requests_csv, 0, 0, "file that receives a line per request"},
        {"output", OPTION_OUTPUT, &o->output, 0, 0, "json or text; by default text on a terminal, else json"},
        {"normal-priority", OPTION_FLAG, &o->normal_priority, 0, 0, "do not raise the scheduling priority"},
        {"allow-cpu-idle", OPTION_FLAG, &o->allow_cpu_idle, 0, 0, "let a virtual machine's idle cores halt"},
        {"dump-schedule", OPTION_FLAG, &o->dump_schedule, 0, 0, "print 'DUE_NS TYPE-N' of every request, send nothing"},
        {"print-plan", OPTION_FLAG, &o->print_plan, 0, 0, "print the plan, send nothing"},
    };
    memcpy(rows, table, sizeof table);
}

static void print_value(const struct option_row *row) {
    switch (row->kind) {
    case OPTION_TEXT: printf("%s", *(const char **)row->value ? *(const char **)row->value : "none"); break;
    case OPTION_COUNT: printf("%llu", (unsigned long long)*(uint64_t *)row->value); break;
    case OPTION_NUMBER: printf("%g", *(double *)row->value); break;
    case OPTION_FLAG: printf("off"); break;
    case OPTION_OUTPUT: printf("auto"); break;
    }
}

__attribute__((noreturn)) static void print_help(const struct option_row rows[OPTION_ROWS]) {
    printf("gen_load: open-loop HTTP load, latencies from the intended send times.\n"
           "Without --plan: bursts of random shape, rate and length of the social network's requests.\n"
           "Example: gen_load --target http://127.0.0.1:8080 --duration-s 60 --max-rate-rps 500\n\n");
    for (int i = 0; i < OPTION_ROWS; i++) {
        printf("  --%-20s %s (", rows[i].name, rows[i].help);
        print_value(&rows[i]);
        printf(")\n");
    }
    exit(EXIT_SUCCESS);
}

static double parse_number(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) fail_user("--%s is '%s', not a number", name, text);
    return value;
}

static uint64_t parse_count(const char *name, const char *text) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || text[0] == '-')
        fail_user("--%s is '%s', not a whole number", name, text);
    return value;
}

static enum output parse_output(const char *text) {
    if (strcmp(text, "json") == 0) return OUTPUT_JSON;
    if (strcmp(text, "text") == 0) return OUTPUT_TEXT;
    fail_user("--output is '%s'; expected json or text", text);
}

static void check_range(const struct option_row *row, double number, const char *text) {
    if (number >= row->minimum && number <= row->maximum) return;
    fail_user("--%s is %s; it must be from %g to %g", row->name, text, row->minimum, row->maximum);
}

static void set_option(const struct option_row *row, const char *text) {
    switch (row->kind) {
    case OPTION_TEXT: *(const char **)row->value = text; break;
    case OPTION_FLAG: *(bool *)row->value = true; break;
    case OPTION_OUTPUT: *(enum output *)row->value = parse_output(text); break;
    case OPTION_COUNT: {
        uint64_t count = parse_count(row->name, text);
        check_range(row, (double)count, text);
        *(uint64_t *)row->value = count;
        break;
    }
    case OPTION_NUMBER: {
        double number = parse_number(row->name, text);
        check_range(row, number, text);
        *(double *)row->value = number;
    }
    }
}

static void check_bounds(const char *what, double low, double high) {
    if (low > high) fail_user("--min-%s is %g, more than --max-%s %g", what, low, what, high);
}

static const struct option_row *find_option(const struct option_row rows[OPTION_ROWS], const char *argument) {
    size_t length = strcspn(argument, "=");
    for (int i = 0; strncmp(argument, "--", 2) == 0 && i < OPTION_ROWS; i++)
        if (strlen(rows[i].name) == length - 2 && strncmp(rows[i].name, argument + 2, length - 2) == 0) return &rows[i];
    if (length == 17 && strncmp(argument, "--let-cores-sleep", length) == 0)
        fail_user("--let-cores-sleep is now --allow-cpu-idle");
    fail_user("unknown option '%s'; --help lists the options", argument);
}

struct options parse_options(int count, char **arguments) {
    struct options options = default_options;
    struct option_row rows[OPTION_ROWS];
    option_table(&options, rows);
    for (int i = 1; i < count; i++) {
        if (strcmp(arguments[i], "--help") == 0 || strcmp(arguments[i], "-h") == 0) print_help(rows);
        const struct option_row *row = find_option(rows, arguments[i]);
        const char *value = strchr(arguments[i], '=');
        if (value != NULL) value++;
        else if (row->kind != OPTION_FLAG && ++i >= count) fail_user("--%s needs a value", row->name);
        else value = arguments[i];
        set_option(row, value);
    }
    check_bounds("rate-rps", options.random.min_rate_rps, options.random.max_rate_rps);
    check_bounds("burst-s", options.random.min_burst_s, options.random.max_burst_s);
    check_bounds("backoff-s", options.random.min_backoff_s, options.random.max_backoff_s);
    return options;
}
