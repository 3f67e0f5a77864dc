/* The due times of the requests of one stream: renewal processes of six kinds on a clock that the rate drives.
 *
 * Gaps are drawn with mean 1 and used up at `rate` per second. So a change of rate stretches the rest of the current gap,
 * silence (rate 0) suspends it, and the expected number of requests is always the integral of the rate. */
#ifndef GEN_LOAD_ARRIVALS_H
#define GEN_LOAD_ARRIVALS_H

#include "random.h"

#include <math.h>

/* The coefficient of variation of the last two can be chosen. */
enum distribution { EXPONENTIAL, NORMAL, FIXED, ZIPF, GAMMA, WEIBULL, DISTRIBUTIONS };

extern const char *const distribution_names[DISTRIBUTIONS];

/* Holds from start_s until the next step. */
struct step {
    double start_s, rate_rps;
    enum distribution distribution;
    double cv;           /* of gamma and weibull */
    double shape, scale; /* of gaps with mean 1 */
};

/* Fills in shape and scale. */
void step_shape(struct step *step);

struct arrivals {
    const struct step *steps;
    size_t step_count, step;
    double at_s, end_s;
    struct random random;
};

/* Positions on the first request. A fixed stream begins at a random phase, so that streams do not send in step. */
void arrivals_begin(struct arrivals *arrivals, const struct step *steps, size_t step_count, double end_s,
                    struct random random);

/* Moves on to the next request. */
void arrivals_next(struct arrivals *arrivals);

/* Due time of the current request in nanoseconds since the plan began; NEVER after the last one. */
static inline int64_t arrivals_due_ns(const struct arrivals *arrivals) {
    return isinf(arrivals->at_s) ? NEVER : (int64_t)(arrivals->at_s * 1e9);
}

#endif
