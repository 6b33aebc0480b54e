/* The choice of the next token; chatbot/decoding/candidates.py and sampler.py. */
#ifndef XIANLIAO_SAMPLE_H
#define XIANLIAO_SAMPLE_H
#include "random.h"
#include "weights.h"

/* A reply in progress. */
typedef struct {
    Random random;
    Numbers ids;
    double log_prob;
    int reason; /* XL_RUNNING while it is unfinished */
} Row;

typedef struct {
    double key;
    int32_t id;
} Keyed;

typedef struct {
    const Bot *bot;
    const double *settings;
    const Numbers *earlier; /* ids of the bot's last replies */
    int earlier_count;
    float *allowed, *ruled, *space; /* scratch [V] */
    double *weights;                /* scratch [V] */
    Keyed *order;                   /* scratch [V] */
} Chooser;

/* Extends or ends the reply by the next token, which is returned; *fault is set if the logits cannot be decoded. */
int32_t choose(const Chooser *chooser, const float *logits, Row *row, const char **fault);
int64_t limit_of(const double *settings);
#endif
