#include "arrivals.h"

const char *const distribution_names[DISTRIBUTIONS] = {"exponential", "normal", "fixed", "zipf", "gamma",
                                                      "weibull"};

/* A normal distribution cut at 0 has a larger mean and a smaller spread than its parent. The parent N(a, 1) with this a
 * gives a cut one whose standard deviation is exactly half its mean. */
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

static double draw_normal(struct random *random) {
    double radius = sqrt(-2.0 * log(random_uniform(random)));
    return radius * cos(2.0 * M_PI * random_uniform(random));
}

/* Mean 1; Marsaglia and Tsang 2000, doi:10.1145/358407.358414. */
static double draw_gamma(struct random *random, double shape) {
    double d = (shape < 1.0 ? shape + 1.0 : shape) - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d), v;
    do {
        double x = draw_normal(random);
        v = 1.0 + c * x;
        v = v * v * v;
        if (v > 0.0 && log(random_uniform(random)) < 0.5 * x * x + d - d * v + d * log(v)) break;
    } while (true);
    return (shape < 1.0 ? pow(random_uniform(random), 1.0 / shape) : 1.0) * d * v / shape;
}

void step_shape(struct step *step) {
    double wanted = step->cv * step->cv;
    step->shape = step->scale = 1.0;
    if (step->distribution == GAMMA) step->shape = 1.0 / wanted;
    if (step->distribution != WEIBULL) return;
    double low = 0.05, high = 50.0; /* the coefficient of variation falls with the shape */
    for (int i = 0; i < 100; i++) {
        step->shape = sqrt(low * high);
        double spread = exp(lgamma(1.0 + 2.0 / step->shape) - 2.0 * lgamma(1.0 + 1.0 / step->shape)) - 1.0;
        if (spread > wanted) low = step->shape;
        else high = step->shape;
    }
    step->scale = exp(-lgamma(1.0 + 1.0 / step->shape));
}

static double draw_gap(struct random *random, const struct step *step) {
    switch (step->distribution) {
    case EXPONENTIAL: return -log(random_uniform(random));
    case NORMAL: return draw_cut_normal(random);
    case ZIPF: return draw_zipf(random);
    case GAMMA: return draw_gamma(random, step->shape);
    case WEIBULL: return step->scale * pow(-log(random_uniform(random)), 1.0 / step->shape);
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

void arrivals_next(struct arrivals *arrivals) {
    if (arrivals->step >= arrivals->step_count) {
        arrivals->at_s = INFINITY;
        return;
    }
    arrivals_advance(arrivals, draw_gap(&arrivals->random, &arrivals->steps[arrivals->step]));
}

void arrivals_begin(struct arrivals *arrivals, const struct step *steps, size_t step_count, double end_s,
                    struct random random) {
    *arrivals = (struct arrivals){.steps = steps, .step_count = step_count, .end_s = end_s, .random = random};
    if (step_count > 0 && steps[0].distribution == FIXED)
        arrivals_advance(arrivals, random_uniform(&arrivals->random));
    else
        arrivals_next(arrivals);
}
