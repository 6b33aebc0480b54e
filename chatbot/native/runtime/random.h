/* Python's random.Random: the Mersenne Twister MT19937 with Python's seeding. */
#ifndef XIANLIAO_RANDOM_H
#define XIANLIAO_RANDOM_H
#include <stdint.h>

typedef struct {
    uint32_t state[624];
    int index;
} Random;

void seed_random(Random *random, uint32_t seed);
double next_random(Random *random); /* in [0, 1), 53 bits */
uint32_t candidate_seed(uint32_t seed, int32_t number);
#endif
