/* The structures of step.c, for the runtime; field by field in the same order. */
#ifndef XIANLIAO_STEP_H
#define XIANLIAO_STEP_H
#include <stdint.h>

enum { WINDOW = 3, ELU = 4, TILE_ROWS = 16 };

typedef struct {
    const float *weight;
    const int8_t *packed;
    const float *scale;
    const int32_t *sums;
    const float *bias;
    int64_t rows, columns, stride;
} Matrix;

typedef struct {
    int64_t kind;
    const float *norm, *norm_bias, *norm2, *norm2_bias;
    Matrix qkv, out, gate, output_gate, up, down;
    const float *conv;
    const float *rate;
} Layer;

typedef struct {
    float *recurrent, *normalizer, *inputs, *keys, *values, *latent, *hidden;
} State;

typedef struct {
    int64_t layers, width, heads, head, inner, window, taps, activation, rotates, rotates_linear;
    float eps, theta;
    const float *tokens, *speakers, *positions;
    const float *norm, *norm_bias;
    Matrix head_matrix;
    const Layer *layer;
    const float *token_scales;
} Model;

typedef int (*Read)(const Model *, State *, int64_t, const int64_t *, const int64_t *, const int64_t *, const int64_t *,
                    const int64_t *, float *);
typedef int (*Draw)(const float *, const float *, const double *, const double *, const double *, int64_t *, int64_t *,
                    double *, int64_t, int64_t, int64_t, int64_t);

typedef struct {
    const char *name;
    Read read;
    Draw draw;
} Kernel;

/* The fastest build of step.c that this processor runs. */
Kernel choose_kernel(void);
#endif
