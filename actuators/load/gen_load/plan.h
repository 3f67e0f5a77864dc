/* The plan: the streams of requests, and the rate of each over time.
 *
 * It is read from a file of lines with words, `#` begins a comment:
 *     stream TYPE METHOD PATH compose|timeline|spans|none|file:PATH
 *     step START_S RATE_RPS exponential|normal|fixed|zipf
 *     step START_S RATE_RPS gamma|weibull CV
 *     deadline S
 *     clients PATIENCE_S RETRIES RETRY_FAILED RETRY_REFUSED BACKOFF_S
 * or drawn at random. `--print-plan` writes this format. */
#ifndef GEN_LOAD_PLAN_H
#define GEN_LOAD_PLAN_H

#include "arrivals.h"

/* What can be timed in nanoseconds, sent and kept; actuators/contract/script_check.py has the same highest rate. */
#define MIN_TIME_S 0.001
#define MAX_TIME_S 1e9
#define MAX_RATE_RPS 1e6
#define MAX_STEPS 1000000
#define MIN_CV 0.05
#define MAX_CV 20.0
#define MAX_RETRIES 100

enum body_kind { BODY_NONE, BODY_COMPOSE, BODY_TIMELINE, BODY_SPANS, BODY_FILE };

/* Shares of the attempts that failed or were refused after which another one follows; pauses are uniform between half and
 * one and a half of backoff_s. Without a line in the plan nobody gives up before the engine's timeout, or repeats. */
struct clients {
    double patience_s; /* 0: the engine's timeout */
    unsigned retries;
    double retry_failed, retry_refused, backoff_s;
};

struct stream {
    char *type, *method, *path, *body_name;
    enum body_kind body;
    char *body_bytes;
    size_t body_length;
    struct step *steps;
    size_t step_count;
    double deadline_s; /* 0 for none */
    struct clients clients;
};

struct plan {
    struct stream *streams;
    size_t stream_count;
};

/* Bounds of the random plan; each value is drawn uniformly between its two bounds. */
struct random_bounds {
    double min_rate_rps, max_rate_rps;
    double min_burst_s, max_burst_s;
    double min_backoff_s, max_backoff_s;
};

/* The plan of a file; exits with one line when the file is wrong. */
struct plan read_plan(const char *path);

/* For each type of the social network: bursts of random distribution, rate and length, with pauses between them. */
struct plan random_plan(const struct random_bounds *bounds, double duration_s, uint64_t seed);

void print_plan(const struct plan *plan, FILE *out);

void free_plan(struct plan *plan);

#endif
