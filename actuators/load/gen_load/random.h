/* Pseudo-random numbers: splitmix64 (Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195).
 *
 * Every purpose has its own generator, seeded by (seed, purpose, index), so that the requests of one stream do not depend
 * on the other streams, and equal seeds give equal bytes. Inline: a compose request draws some 500 numbers. */
#ifndef GEN_LOAD_RANDOM_H
#define GEN_LOAD_RANDOM_H

#include "base.h"

enum purpose { FOR_ARRIVALS = 1, FOR_REQUESTS = 2, FOR_PLAN = 3, FOR_CLIENTS = 4 };

struct random {
    uint64_t state;
};

static inline uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static inline uint64_t random_next(struct random *random) {
    random->state += 0x9e3779b97f4a7c15ULL;
    return mix64(random->state);
}

static inline struct random random_for(uint64_t seed, enum purpose purpose, uint64_t index) {
    uint64_t state = mix64(seed + 0x9e3779b97f4a7c15ULL);
    state = mix64(state ^ ((uint64_t)purpose * 0xd1b54a32d192ed03ULL));
    return (struct random){mix64(state ^ (index * 0x8cb92ba72f3d8dd7ULL))};
}

/* Uniform in (0, 1). Never 0, so that its logarithm is finite. */
static inline double random_uniform(struct random *random) {
    return ((double)(random_next(random) >> 11) + 0.5) * 0x1p-53;
}

static inline double random_between(struct random *random, double low, double high) {
    return low + (high - low) * random_uniform(random);
}

/* Uniform integer in 0 … bound − 1, by multiplication; the bias is below bound / 2^32. */
static inline uint32_t random_below(struct random *random, uint32_t bound) {
    return (uint32_t)(((random_next(random) >> 32) * bound) >> 32);
}

#endif
