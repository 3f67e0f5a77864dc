/* When the requests of one stream are due: renewal processes of four kinds, on a clock that the rate drives.
 *
 * Gaps are drawn with mean 1 and used up at `rate` per second, so that a change of rate stretches what
 * is left of the current gap, silence (rate 0) suspends it, and the expected number of requests is
 * always the integral of the rate. */
#ifndef GEN_LOAD_ARRIVALS_H
#define GEN_LOAD_ARRIVALS_H

#include "base.h"

#include <math.h>

/* Pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195).
 *
 * Every use draws from a generator of its own, seeded by (seed, purpose, index), so that the requests
 * of one stream do not depend on what other streams do, and equal seeds repeat to the byte. */
enum purpose { FOR_ARRIVALS = 1, FOR_REQUESTS = 2, FOR_PLAN = 3 };

struct random {
    uint64_t state;
};

static uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static uint64_t random_next(struct random *random) {
    random->state += 0x9e3779b97f4a7c15ULL;
    return mix64(random->state);
}

static struct random random_for(uint64_t seed, enum purpose purpose, uint64_t index) {
    uint64_t state = mix64(seed + 0x9e3779b97f4a7c15ULL);
    state = mix64(state ^ ((uint64_t)purpose * 0xd1b54a32d192ed03ULL));
    return (struct random){mix64(state ^ (index * 0x8cb92ba72f3d8dd7ULL))};
}

/* Uniform in (0, 1): never 0, so its logarithm is finite. */
static double random_uniform(struct random *random) {
    return ((double)(random_next(random) >> 11) + 0.5) * 0x1p-53;
}

static double random_between(struct random *random, double low, double high) {
    return low + (high - low) * random_uniform(random);
}

/* Uniform integer in 0 … bound − 1, by multiplication: the bias is below bound / 2^32. */
static uint32_t random_below(struct random *random, uint32_t bound) {
    return (uint32_t)(((random_next(random) >> 32) * bound) >> 32);
}

enum distribution { EXPONENTIAL, NORMAL, FIXED, ZIPF, DISTRIBUTIONS };

static const char *const distribution_names[DISTRIBUTIONS] = {"exponential", "normal", "fixed", "zipf"};

/* From start_s until the next step. */
struct step {
    double start_s, rate_rps;
    enum distribution distribution;
};

struct arrivals {
    const struct step *steps;
    size_t step_count, step;
    double at_s, end_s;
    struct random random;
};

/* A normal distribution cut at 0 has a larger mean and a smaller spread than the one it is cut from.
 * Parent N(a, 1) with this a gives a cut one whose standard deviation is exactly half its mean. */
#define CUT_NORMAL_PARENT_MEAN 1.7280422299609217
#define CUT_NORMAL_MEAN 1.8216065556687684

static double draw_cut_normal(struct random *random) {
    double value;
    do {
        double radius = sqrt(-2.0 * log(random_uniform(random)));
        value = CUT_NORMAL_PARENT_MEAN + radius * cos(2.0 * M_PI * random_uniform(random));
    } while (value <= 0.0);
    return value / CUT_NORMAL_MEAN;
}

enum { ZIPF_VALUES = 1000 };

/* P(k) ∝ k^-2 for k = 1 … 1000, divided by its mean. */
static double draw_zipf(struct random *random) {
    static double cumulative[ZIPF_VALUES], mean;
    if (mean == 0.0) {
        double weights = 0.0, sum = 0.0;
        for (int k = 1; k <= ZIPF_VALUES; k++) {
            cumulative[k - 1] = weights += 1.0 / ((double)k * k);
            sum += 1.0 / k;
        }
        mean = sum / weights;
    }
    double target = random_uniform(random) * cumulative[ZIPF_VALUES - 1];
    int low = 0, high = ZIPF_VALUES - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (cumulative[middle] < target) low = middle + 1;
        else high = middle;
    }
    return (low + 1) / mean;
}

static double draw_gap(struct random *random, enum distribution distribution) {
    switch (distribution) {
    case EXPONENTIAL: return -log(random_uniform(random));
    case NORMAL: return draw_cut_normal(random);
    case ZIPF: return draw_zipf(random);
    default: return 1.0;
    }
}

/* Moves on by `gap` units of rate × time; at_s becomes INFINITY when the stream has ended. */
static void arrivals_advance(struct arrivals *arrivals, double gap) {
    while (arrivals->step < arrivals->step_count) {
        const struct step *step = &arrivals->steps[arrivals->step];
        bool last = arrivals->step + 1 == arrivals->step_count;
        double step_end_s = last ? arrivals->end_s : fmin(step[1].start_s, arrivals->end_s);
        double due_s = step->rate_rps > 0.0 ? arrivals->at_s + gap / step->rate_rps : INFINITY;
        if (due_s < step_end_s) {
            arrivals->at_s = due_s;
            return;
        }
        gap -= fmax(step_end_s - arrivals->at_s, 0.0) * step->rate_rps;
        gap = fmax(gap, 0.0);
        arrivals->at_s = fmax(step_end_s, arrivals->at_s);
        arrivals->step++;
    }
    arrivals->at_s = INFINITY;
}

static void arrivals_next(struct arrivals *arrivals) {
    if (arrivals->step >= arrivals->step_count) {
        arrivals->at_s = INFINITY;
        return;
    }
    arrivals_advance(arrivals, draw_gap(&arrivals->random, arrivals->steps[arrivals->step].distribution));
}

/* Positions on the first request. A fixed stream starts at a random phase: streams must not march in step. */
static void arrivals_begin(struct arrivals *arrivals, const struct step *steps, size_t step_count, double end_s,
                           struct random random) {
    *arrivals = (struct arrivals){.steps = steps, .step_count = step_count, .end_s = end_s, .random = random};
    if (step_count > 0 && steps[0].distribution == FIXED)
        arrivals_advance(arrivals, random_uniform(&arrivals->random));
    else
        arrivals_next(arrivals);
}

/* Nanoseconds since the plan began, NEVER after the last request. */
static int64_t arrivals_due_ns(const struct arrivals *arrivals) {
    return isinf(arrivals->at_s) ? NEVER : (int64_t)(arrivals->at_s * 1e9);
}

#endif
