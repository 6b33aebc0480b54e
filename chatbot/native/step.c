/* One decoding step of xianliao's network, for B rows, as chatbot/model.py defines it, and the short convolution for training.
 *
 * Weights are read where they lie, as fp32 or as int8 with one fp32 scale a row; activations of an int8 product are
 * rounded to int8 with one scale a row of the batch, so that no row depends on its neighbours. The state of a row is
 * updated in place. Compiled on the machine it runs on (chatbot/native/__init__.py); pure torch serves where there is no
 * compiler. Dims: B rows, D hidden size, H heads, K head width, W window, V vocabulary.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

enum { DECAY = 0, GATED = 1, DELTA = 2, WINDOW = 3 };
enum { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3 };

/* A matrix [rows, columns] of a linear layer. int8 is padded with zeros to `stride` columns and a multiple of 4 rows. */
typedef struct {
    const float *weight;   /* fp32, or NULL */
    const int8_t *packed;  /* int8, or NULL */
    const float *scale;    /* of each int8 row */
    const int32_t *sums;   /* of each int8 row */
    const float *bias;     /* or NULL */
    int64_t rows, columns, stride;
} Matrix;

typedef struct {
    int64_t kind;
    const float *norm, *norm_bias, *norm2, *norm2_bias;
    Matrix qkv, out, gate, output_gate, up, down;  /* gate, output_gate: rows 0 when there is none */
    const float *conv;  /* [taps, 3 H K], or NULL */
    const float *rate;  /* [H], decay rates */
} Layer;

/* State of one layer: [B, ...], contiguous. */
typedef struct {
    float *recurrent;       /* [B, H, K, K] */
    float *inputs;          /* [B, taps - 1, 3 H K] */
    float *keys, *values;   /* [B, W, H, K], a ring: position p lies at p mod W */
} State;

typedef struct {
    int64_t layers, width, heads, head, inner, window, taps, activation, rotates;
    float eps, theta;
    const float *tokens, *speakers, *positions;  /* positions may be NULL */
    const float *norm, *norm_bias;
    Matrix head_matrix;
    const Layer *layer;
} Model;

static inline float exp_(float x) { /* Cephes expf; fmaf, so that no flag merges the two steps of the reduction */
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
    return p * power.f;
}

static inline float silu_(float x) { return x / (1.0f + exp_(-x)); }

static inline float softplus_(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

static inline float erf_(float x) { /* Abramowitz and Stegun 7.1.26; absolute error 5e-7 in fp32 */
    float a = fabsf(x), t = 1.0f / (1.0f + 0.3275911f * a);
    float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    float e = 1.0f - p * exp_(-a * a);
    return x < 0 ? -e : e;
}

static inline float tanh_(float x) { return 1.0f - 2.0f / (1.0f + exp_(2.0f * x)); }

static void activate(float *x, int64_t n, int64_t kind) {
    if (kind == GELU)
        for (int64_t i = 0; i < n; i++) x[i] = 0.5f * x[i] * (1.0f + erf_(x[i] * 0.70710678f));
    else if (kind == GELU_TANH)
        for (int64_t i = 0; i < n; i++)
            x[i] = 0.5f * x[i] * (1.0f + tanh_(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
    else if (kind == RELU)
        for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i]; /* a NaN stays */
    else
        for (int64_t i = 0; i < n; i++) x[i] = silu_(x[i]);
}

static void layer_norm(const float *x, float *y, int64_t n, const float *weight, const float *bias, float eps) {
    float mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= n;
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    float inverse = 1.0f / sqrtf(variance / n + eps);
    for (int64_t i = 0; i < n; i++) {
        float value = (x[i] - mean) * inverse;
        if (weight) value *= weight[i];
        if (bias) value += bias[i];
        y[i] = value;
    }
}

/* y[b, r] (+)= sum_c w[r, c] x[b, c], four weight rows at a time. */
static void multiply_float(const Matrix *m, const float *x, float *y, int64_t batch, int add) {
    int64_t n = m->columns;
    for (int64_t r = 0; r < m->rows; r += 4) {
        int64_t left = m->rows - r < 4 ? m->rows - r : 4;
        const float *w0 = m->weight + r * n, *w1 = w0 + (left > 1 ? n : 0), *w2 = w0 + (left > 2 ? 2 * n : 0),
                    *w3 = w0 + (left > 3 ? 3 * n : 0);
        for (int64_t b = 0; b < batch; b++) {
            const float *in = x + b * n;
            float s[4] = {0, 0, 0, 0};
            for (int64_t c = 0; c < n; c++) {
                s[0] += w0[c] * in[c];
                s[1] += w1[c] * in[c];
                s[2] += w2[c] * in[c];
                s[3] += w3[c] * in[c];
            }
            float *out = y + b * m->rows + r;
            for (int64_t i = 0; i < left; i++) {
                float value = s[i] + (m->bias ? m->bias[r + i] : 0);
                out[i] = add ? out[i] + value : value;
            }
        }
    }
}

#ifdef __AVX512VNNI__
/* Four weight rows against `count` (1 to 4) batch rows of unsigned bytes. */
static inline __attribute__((always_inline)) void dot4(
    const int8_t *w, int64_t stride, const uint8_t *x, int64_t columns, int count, int32_t sums[4][4]) {
    __m512i s[4][4];
    for (int b = 0; b < count; b++)
        for (int i = 0; i < 4; i++) s[b][i] = _mm512_setzero_si512();
    for (int64_t c = 0; c < columns; c += 64) {
        __m512i w0 = _mm512_loadu_si512(w + c), w1 = _mm512_loadu_si512(w + stride + c),
                w2 = _mm512_loadu_si512(w + 2 * stride + c), w3 = _mm512_loadu_si512(w + 3 * stride + c);
        for (int b = 0; b < count; b++) {
            __m512i in = _mm512_loadu_si512(x + b * columns + c);
            s[b][0] = _mm512_dpbusd_epi32(s[b][0], in, w0);
            s[b][1] = _mm512_dpbusd_epi32(s[b][1], in, w1);
            s[b][2] = _mm512_dpbusd_epi32(s[b][2], in, w2);
            s[b][3] = _mm512_dpbusd_epi32(s[b][3], in, w3);
        }
    }
    for (int b = 0; b < count; b++)
        for (int i = 0; i < 4; i++) sums[b][i] = _mm512_reduce_add_epi32(s[b][i]);
}
#else
static inline void dot4(
    const int8_t *w, int64_t stride, const uint8_t *x, int64_t columns, int count, int32_t sums[4][4]) {
    for (int b = 0; b < count; b++)
        for (int i = 0; i < 4; i++) {
            int32_t sum = 0;
            for (int64_t c = 0; c < columns; c++) sum += (int32_t)w[i * stride + c] * (int32_t)x[b * columns + c];
            sums[b][i] = sum;
        }
}
#endif

/* The same with int8 weights; `bytes` holds the rounded input, `scales` its scale per row. */
static void multiply_int8(const Matrix *m, const uint8_t *bytes, const float *scales, float *y, int64_t batch, int add) {
    int32_t sums[4][4];
    for (int64_t r = 0; r < m->rows; r += 4) {
        const int8_t *w = m->packed + r * m->stride;
        for (int64_t b = 0; b < batch; b += 4) {
            const uint8_t *in = bytes + b * m->stride;
            switch (batch - b) {
                case 1: dot4(w, m->stride, in, m->stride, 1, sums); break;
                case 2: dot4(w, m->stride, in, m->stride, 2, sums); break;
                case 3: dot4(w, m->stride, in, m->stride, 3, sums); break;
                default: dot4(w, m->stride, in, m->stride, 4, sums);
            }
            int64_t rows = batch - b < 4 ? batch - b : 4;
            for (int64_t j = 0; j < rows; j++)
                for (int64_t i = 0; i < 4 && r + i < m->rows; i++) {
                    float value = (float)(sums[j][i] - 128 * m->sums[r + i]) * m->scale[r + i] * scales[b + j];
                    if (m->bias) value += m->bias[r + i];
                    float *out = y + (b + j) * m->rows + r + i;
                    *out = add ? *out + value : value;
                }
        }
    }
}

/* x [B, columns] to unsigned bytes round(127 x / max|x|) + 128, padded with 128. */
static void round_rows(const float *x, int64_t columns, int64_t stride, int64_t batch, uint8_t *bytes, float *scales) {
    for (int64_t b = 0; b < batch; b++) {
        const float *in = x + b * columns;
        uint8_t *out = bytes + b * stride;
        const int32_t *bits = (const int32_t *)in; /* sizes compare as their bits do, and integers need no care for NaN */
        int32_t top = 0;
        for (int64_t c = 0; c < columns; c++) {
            int32_t size = bits[c] & 0x7fffffff;
            top = size > top ? size : top;
        }
        float most;
        memcpy(&most, &top, sizeof most);
        float inverse = most > 0 ? 127.0f / most : 0;
        scales[b] = most / 127.0f;
        for (int64_t c = 0; c < columns; c++) out[c] = (uint8_t)((int32_t)(in[c] * inverse + 128.5f));
        memset(out + columns, 128, stride - columns);
    }
}

typedef struct {
    uint8_t *bytes;
    float *scales;
} Rounded;

static void multiply(const Matrix *m, const float *x, float *y, int64_t batch, int add, Rounded space) {
    if (m->weight) {
        multiply_float(m, x, y, batch, add);
        return;
    }
    round_rows(x, m->columns, m->stride, batch, space.bytes, space.scales);
    multiply_int8(m, space.bytes, space.scales, y, batch, add);
}

static void rotate(float *x, int64_t head, int64_t position, float theta) {
    int64_t half = head / 2;
    for (int64_t i = 0; i < half; i++) {
        float angle = (float)position * powf(theta, -(float)i / half);
        float c = cosf(angle), s = sinf(angle), first = x[i], second = x[i + half];
        x[i] = first * c - second * s;
        x[i + half] = second * c + first * s;
    }
}

/* S <- decay S + k v^T;  o = q S.  S is [K, K]. */
static void recur(float *restrict S, const float *q, const float *k, const float *v, float decay, int64_t K, float *restrict o) {
    memset(o, 0, K * sizeof(float));
    for (int64_t i = 0; i < K; i++) {
        float *row = S + i * K, key = k[i], query = q[i];
        for (int64_t j = 0; j < K; j++) {
            row[j] = decay * row[j] + key * v[j];
            o[j] += query * row[j];
        }
    }
}

/* The gated delta rule; `held` is scratch [K]. */
static void recur_delta(float *restrict S, const float *q, const float *k, const float *v, float decay, float beta, int64_t K,
                        float *restrict o, float *restrict held) {
    memset(held, 0, K * sizeof(float));
    for (int64_t i = 0; i < K; i++) {
        float *row = S + i * K, key = k[i];
        for (int64_t j = 0; j < K; j++) {
            row[j] *= decay;
            held[j] += key * row[j];
        }
    }
    for (int64_t j = 0; j < K; j++) held[j] = beta * (v[j] - held[j]);
    recur(S, q, k, held, 1.0f, K, o);
}

static void normalize(float *x, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    float inverse = 1.0f / (sqrtf(sum) > 1e-12f ? sqrtf(sum) : 1e-12f);
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
}

/* Attention over the last W positions; `scores` is scratch [W]. */
static void attend(const Model *m, float *keys, float *values, float *q, float *k, float *v, int64_t h, int64_t position,
                   float *scores, float *o) {
    int64_t K = m->head, W = m->window, seen = position + 1 < W ? position + 1 : W;
    if (m->rotates) {
        rotate(q, K, position, m->theta);
        rotate(k, K, position, m->theta);
    }
    memcpy(keys + (position % W) * m->inner + h * K, k, K * sizeof(float));
    memcpy(values + (position % W) * m->inner + h * K, v, K * sizeof(float));
    float most = -INFINITY, total = 0, scale = 1.0f / sqrtf((float)K);
    for (int64_t s = 0; s < seen; s++) {
        const float *key = keys + s * m->inner + h * K;
        float dot = 0;
        for (int64_t i = 0; i < K; i++) dot += q[i] * key[i];
        scores[s] = dot * scale;
        most = scores[s] > most ? scores[s] : most;
    }
    for (int64_t s = 0; s < seen; s++) total += scores[s] = exp_(scores[s] - most);
    memset(o, 0, K * sizeof(float));
    for (int64_t s = 0; s < seen; s++) {
        const float *value = values + s * m->inner + h * K;
        float weight = scores[s] / total;
        for (int64_t i = 0; i < K; i++) o[i] += weight * value[i];
    }
}

/* qkv += sum of taps over the inputs before; the oldest input makes room for the newest. */
static void convolve(float *qkv, float *inputs, const float *taps, int64_t count, int64_t width, float *fresh) {
    memcpy(fresh, qkv, width * sizeof(float));
    for (int64_t i = 0; i < width; i++) qkv[i] += taps[i] * fresh[i];
    for (int64_t back = 1; back < count; back++) {
        const float *earlier = inputs + (count - 1 - back) * width, *tap = taps + back * width;
        for (int64_t i = 0; i < width; i++) qkv[i] += tap[i] * earlier[i];
    }
    memmove(inputs, inputs + width, (count - 2) * width * sizeof(float));
    memcpy(inputs + (count - 2) * width, fresh, width * sizeof(float));
}

/* The mixer of one layer for one row: qkv [3 H K] and gates to o [H K]. */
static void mix(const Model *m, const Layer *layer, State *state, int64_t b, int64_t position, float *qkv,
                const float *gates, float *o, float *scratch) {
    int64_t K = m->head, H = m->heads, inner = m->inner;
    if (layer->conv)
        convolve(qkv, state->inputs + b * (m->taps - 1) * 3 * inner, layer->conv, m->taps, 3 * inner, scratch);
    float *q = qkv, *k = qkv + inner, *v = qkv + 2 * inner;
    if (layer->kind != WINDOW)
        for (int64_t i = 0; i < (layer->kind == DELTA ? 3 : 2) * inner; i++) qkv[i] = silu_(qkv[i]);
    for (int64_t h = 0; h < H; h++) {
        float *qh = q + h * K, *kh = k + h * K, *vh = v + h * K, *oh = o + h * K;
        if (layer->kind == WINDOW) {
            float *keys = state->keys + b * m->window * inner, *values = state->values + b * m->window * inner;
            attend(m, keys, values, qh, kh, vh, h, position, scratch, oh);
            continue;
        }
        float *S = state->recurrent + (b * H + h) * K * K;
        float decay = expf(-layer->rate[h] * (layer->kind == DECAY ? 1.0f : softplus_(gates[h])));
        if (layer->kind == DELTA) {
            normalize(qh, K);
            normalize(kh, K);
            recur_delta(S, qh, kh, vh, decay, 1.0f / (1.0f + expf(-gates[H + h])), K, oh, scratch);
        } else {
            float scale = 1.0f / sqrtf((float)K);
            for (int64_t i = 0; i < K; i++) kh[i] *= scale;
            recur(S, qh, kh, vh, decay, K, oh);
        }
        layer_norm(oh, oh, K, NULL, NULL, m->eps);
    }
}

static int64_t longest(int64_t a, int64_t b) { return a > b ? a : b; }

/* One token a row. ids, speakers, positions: [B]; logits: [B, V]. Returns 0, or 1 when memory is short. */
int xianliao_step(const Model *m, State *states, int64_t batch, const int64_t *ids, const int64_t *speakers,
                  const int64_t *positions, float *logits) {
    int64_t D = m->width, inner = m->inner, up = m->layer[0].up.rows, wide = longest(3 * inner, longest(up, D)) + 64;
    int64_t scratch = longest(longest(m->window, 3 * inner), 64);
    size_t floats = batch * (2 * D + 2 * wide + inner + inner + 2 * m->heads + 8) + scratch + 1024;
    float *memory = malloc(floats * sizeof(float) + (batch + 4) * (wide + 64));
    if (!memory) return 1;
    float *x = memory, *h = x + batch * D, *a = h + batch * D, *o = a + batch * wide, *gates = o + batch * inner,
          *side = gates + batch * (2 * m->heads + 4), *scales = side + batch * inner, *rest = scales + batch + 4;
    Rounded space = {(uint8_t *)(memory + floats), scales};
    for (int64_t b = 0; b < batch; b++)
        for (int64_t i = 0; i < D; i++) {
            x[b * D + i] = m->tokens[ids[b] * D + i] + m->speakers[speakers[b] * D + i];
            if (m->positions) x[b * D + i] += m->positions[positions[b] * D + i];
        }
    for (int64_t l = 0; l < m->layers; l++) {
        const Layer *layer = m->layer + l;
        for (int64_t b = 0; b < batch; b++) layer_norm(x + b * D, h + b * D, D, layer->norm, layer->norm_bias, m->eps);
        multiply(&layer->qkv, h, a, batch, 0, space);
        if (layer->gate.rows) multiply_float(&layer->gate, h, gates, batch, 0);
        for (int64_t b = 0; b < batch; b++)
            mix(m, layer, states + l, b, positions[b], a + b * 3 * inner, gates + b * layer->gate.rows, o + b * inner, rest);
        if (layer->output_gate.rows) {
            multiply(&layer->output_gate, h, side, batch, 0, space);
            for (int64_t i = 0; i < batch * inner; i++) o[i] *= silu_(side[i]);
        }
        multiply(&layer->out, o, x, batch, 1, space);
        for (int64_t b = 0; b < batch; b++) layer_norm(x + b * D, h + b * D, D, layer->norm2, layer->norm2_bias, m->eps);
        multiply(&layer->up, h, a, batch, 0, space);
        activate(a, batch * layer->down.columns, m->activation);
        multiply(&layer->down, a, x, batch, 1, space);
    }
    int64_t V = m->head_matrix.rows;
    for (int64_t b = 0; b < batch; b++) layer_norm(x + b * D, h + b * D, D, m->norm, m->norm_bias, m->eps);
    multiply(&m->head_matrix, h, logits, batch, 0, space);
    for (int64_t b = 0; b < batch; b++) { /* integers hide a NaN: say it again */
        float sum = 0;
        for (int64_t i = 0; i < D; i++) sum += x[b * D + i];
        if (!(sum - sum == 0))
            for (int64_t i = 0; i < V; i++) logits[b * V + i] = NAN;
    }
    free(memory);
    return 0;
}

/* The short convolution over whole rows, for training: x, y [B, T, C]; segments [B, T] or NULL; taps [S, C].
 * y_t = x_t + sum_i w_i x_{t-i} within a segment (chatbot/attention/convolution.py). */
void xianliao_convolve(const float *x, const int64_t *segments, const float *taps, float *y, int64_t batch, int64_t length,
                       int64_t channels, int64_t size) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < length; t++) {
            const float *now = x + (b * length + t) * channels;
            float *restrict out = y + (b * length + t) * channels;
            for (int64_t c = 0; c < channels; c++) out[c] = now[c] + taps[c] * now[c];
            for (int64_t back = 1; back < size && back <= t; back++) {
                if (segments && segments[b * length + t] != segments[b * length + t - back]) break;
                const float *before = now - back * channels, *tap = taps + back * channels;
                for (int64_t c = 0; c < channels; c++) out[c] += tap[c] * before[c];
            }
        }
}

/* Its gradients: dx [B, T, C], and dw [S, C], which is added to. */
void xianliao_convolve_backward(const float *x, const float *dy, const int64_t *segments, const float *taps, float *dx,
                                float *dw, int64_t batch, int64_t length, int64_t channels, int64_t size) {
    for (int64_t b = 0; b < batch; b++)
        for (int64_t t = 0; t < length; t++) {
            const float *now = x + (b * length + t) * channels, *grad = dy + (b * length + t) * channels;
            float *restrict out = dx + (b * length + t) * channels, *restrict sum = dw;
            for (int64_t c = 0; c < channels; c++) {
                out[c] = grad[c] + taps[c] * grad[c];
                sum[c] += grad[c] * now[c];
            }
            for (int64_t back = 1; back < size && t + back < length; back++) {
                if (segments && segments[b * length + t] != segments[b * length + t + back]) break;
                const float *after = grad + back * channels, *tap = taps + back * channels;
                float *restrict gathered = dw + back * channels;
                for (int64_t c = 0; c < channels; c++) {
                    out[c] += tap[c] * after[c];
                    gathered[c] += after[c] * now[c];
                }
            }
        }
}
