/* The forward pass of chatbot/model/network.py for a few tokens at a time, the draw of the next token, and the short
 * convolution for training.
 *
 * A lane is one token of one row (dialogue). Weights are fp32, or int8 with one fp32 scale per row of the matrix. The
 * activations of an int8 product are rounded to int8 with one scale per lane. The order of every sum is fixed, so the
 * result of a row is the same to the bit, whatever other rows are computed and in however many parts the row is read.
 * With int8 weights and elu or window layers it is also the same on every processor with or without AVX (tests/lite): sums have 16 partial sums whatever
 * the registers, and the compiler may neither reorder nor fuse (library.py's FLAGS). fp32 products fuse if they can.
 * The states of the rows are updated in place. chatbot/native/library.py compiles this file on the machine that runs
 * it, or a wheel has it prebuilt (dispatch.c); without either, torch computes the same.
 * Dims: L lanes, B rows, D hidden size, H heads, K head width, W window, V vocabulary.
 *
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifndef XIANLIAO_ONE_THREAD
#include <pthread.h>
#endif
#if defined(__AVX2__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#ifdef __wasm__ /* no fused instruction; the product of two floats is exact in double */
#define fmaf(a, b, c) ((float)((double)(a) * (b) + (c)))
#endif

enum { DECAY = 0, GATED = 1, DELTA = 2, WINDOW = 3, ELU = 4 };
enum { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3 };
#ifdef __AVX512BW__ /* AVX-512F alone has no instructions for bytes: such a processor takes the AVX2 form */
enum { GROUP = 16, MAX_LANES = 6 };
#else
enum { GROUP = 8, MAX_LANES = 2 }; /* registers are half as wide, and half as many */
#endif
enum { MAX_GROUPS = 4, PASS = 64, MAX_THREADS = 16, MIN_LANES = 4 }; /* MIN_LANES: fewer do not pay for a thread */
#ifndef TILE
#define TILE GROUP /* rows of int8 weights that are interleaved; a file for every processor fixes it to 16 */
#endif
const int64_t xianliao_group = GROUP;
#ifdef XIANLIAO_DISPATCHED
extern int64_t xianliao_threads; /* one for all builds, in dispatch.c */
#else
int64_t xianliao_threads = 1; /* set by chatbot/native/library.py */
#endif

typedef float Floats __attribute__((vector_size(4 * GROUP), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * GROUP), aligned(4)));
typedef float Sixteen __attribute__((vector_size(64), aligned(4)));
typedef float EightFloats __attribute__((vector_size(32), aligned(4)));
typedef int32_t EightIntegers __attribute__((vector_size(32), aligned(4)));
typedef double EightDoubles __attribute__((vector_size(64), aligned(8)));

/* A matrix [rows, columns] of a linear layer with rows interleaved: weight [rows / GROUP, columns, GROUP] or packed
 * [rows / TILE, stride / 4, TILE, 4], padded with zeros. scale, sums and bias are padded in the same way. */
typedef struct {
    const float *weight;   /* fp32, or NULL */
    const int8_t *packed;  /* int8, or NULL */
    const float *scale;    /* per int8 row */
    const int32_t *sums;   /* sum of each int8 row */
    const float *bias;     /* or NULL */
    int64_t rows, columns, stride;
} Matrix;

typedef struct {
    int64_t kind;
    const float *norm, *norm_bias, *norm2, *norm2_bias;
    Matrix qkv, out, gate, output_gate, up, down;  /* gate, output_gate: rows is 0 if the layer has none */
    const float *conv;  /* [taps, 3 H K], or NULL */
    const float *rate;  /* [H], decay rates */
} Layer;

/* State of one layer: [B, ...], contiguous. */
typedef struct {
    float *recurrent;       /* [B, H, K, K] */
    float *normalizer;      /* [B, H, K] */
    float *inputs;          /* [B, taps - 1, 3 H K] */
    float *keys, *values;   /* [B, W, H, K], a ring buffer: position p is stored at p mod W */
    float *latent;          /* [B, D], added to the input of the layer, or NULL */
    float *hidden;          /* [B, D], last layer only: hidden state after the last norm, or NULL */
} State;

typedef struct {
    int64_t layers, width, heads, head, inner, window, taps, activation, rotates, rotates_linear;
    float eps, theta;
    const float *tokens, *speakers, *positions;  /* positions may be NULL; tokens too if token_scales is given */
    const float *norm, *norm_bias;
    Matrix head_matrix;
    const Layer *layer;
    const float *token_scales;  /* [V]: token embeddings are the int8 rows of head_matrix times these; or NULL */
} Model;

/* Cephes expf; fmaf, so that no compiler flag merges the two steps of the reduction. */
static inline float exp_(float x) {
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
    int32_t whole = n == n ? (int32_t)n : 0; /* C leaves the conversion of a NaN undefined; p is NaN then */
    union { int32_t i; float f; } power = {(whole + 127) << 23};
    return p * power.f;
}

/* The sum of 16 partial sums, by halves. */
static inline float gather(Sixteen parts) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

static inline double gather_doubles(EightDoubles parts) {
    for (int half = 4; half; half /= 2)
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

static inline float dot(const float *a, const float *b, int64_t n) {
    Sixteen parts = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) parts += *(const Sixteen *)(a + i) * *(const Sixteen *)(b + i);
    for (int64_t j = 0; i + j < n; j++) parts[j] += a[i + j] * b[i + j];
    return gather(parts);
}

static inline float sum(const float *x, int64_t n) {
    Sixteen parts = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) parts += *(const Sixteen *)(x + i);
    for (int64_t j = 0; i + j < n; j++) parts[j] += x[i + j];
    return gather(parts);
}

/* Sum of the squares of x - mean. */
static inline float spread(const float *x, float mean, int64_t n) {
    Sixteen parts = {0};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        Sixteen distance = *(const Sixteen *)(x + i) - mean;
        parts += distance * distance;
    }
    for (int64_t j = 0; i + j < n; j++) parts[j] += (x[i + j] - mean) * (x[i + j] - mean);
    return gather(parts);
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
        for (int64_t i = 0; i < n; i++) x[i] = x[i] < 0 ? 0 : x[i]; /* NaN is kept */
    else
        for (int64_t i = 0; i < n; i++) x[i] = silu_(x[i]);
}

static void layer_norm(const float *x, float *y, int64_t n, const float *weight, const float *bias, float eps) {
    float mean = sum(x, n) / n, inverse = 1.0f / sqrtf(spread(x, mean, n) / n + eps);
    for (int64_t i = 0; i < n; i++) {
        float value = (x[i] - mean) * inverse;
        if (weight) value *= weight[i];
        if (bias) value += bias[i];
        y[i] = value;
    }
}

#define ALWAYS static inline __attribute__((always_inline))

/* a b + c, with the fused instruction where the processor has it. If the compiler chose, some tunings (GCC's for AMD)
 * would use it in one copy of block_float and not in another, and the bits of a row would depend on the number of
 * lanes. */
ALWAYS Floats fused(Floats a, float b, Floats c) {
#if defined(__AVX512BW__)
    return (Floats)_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(b), (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, _mm256_set1_ps(b), (__m256)c);
#else
    return c + a * b;
#endif
}

/* Multiplies `groups` groups of weight rows by `lanes` inputs; both counts are constants where this is inlined. */
ALWAYS void block_float(const Matrix *m, int64_t group, const float *x, int groups, int lanes,
                        Floats s[MAX_GROUPS][MAX_LANES]) {
    int64_t n = m->columns;
    const float *w = m->weight + group * GROUP * n;
    for (int64_t c = 0; c < n; c++)
        for (int g = 0; g < groups; g++) {
            Floats weights = *(const Floats *)(w + (g * n + c) * GROUP);
            for (int b = 0; b < lanes; b++) s[g][b] = fused(weights, x[b * n + c], s[g][b]);
        }
}

ALWAYS void block_int8(const Matrix *m, int64_t group, const uint8_t *x, const float *scales, int groups, int lanes,
                       Floats s[MAX_GROUPS][MAX_LANES]) {
    int64_t n = m->stride;
    Integers sums[MAX_GROUPS][MAX_LANES] = {{{0}}};
    for (int64_t c = 0; c < n; c += 4)
        for (int g = 0; g < groups; g++) {
            int64_t row = (group + g) * GROUP;
            const int8_t *weights = m->packed + (row - row % TILE) * n + c * TILE + row % TILE * 4;
#ifdef __AVX512VNNI__
            __m512i loaded = _mm512_loadu_si512(weights);
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                sums[g][b] = (Integers)_mm512_dpbusd_epi32((__m512i)sums[g][b], _mm512_set1_epi32(four), loaded);
            }
#elif defined(__AVX512BW__)
            /* as for AVX2 below; AVX-512 has no instruction like sign_epi8, so a mask carries the sign of x */
            __m512i loaded = _mm512_loadu_si512(weights), ones = _mm512_set1_epi16(1), zeros = _mm512_setzero_si512();
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                __m512i inputs = _mm512_set1_epi32(four ^ (int32_t)0x80808080);
                __m512i turned = _mm512_mask_sub_epi8(loaded, _mm512_movepi8_mask(inputs), zeros, loaded);
                __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(inputs), turned);
                sums[g][b] += (Integers)_mm512_madd_epi16(pairs, ones);
            }
#elif defined(__AVX2__)
            /* |x| times (w with the sign of x): two products fit into 16 bits, because |x| and |w| are <= 127 */
            __m256i loaded = _mm256_loadu_si256((const __m256i *)weights), ones = _mm256_set1_epi16(1);
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                __m256i inputs = _mm256_set1_epi32(four ^ (int32_t)0x80808080);
                __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(inputs), _mm256_sign_epi8(loaded, inputs));
                sums[g][b] += (Integers)_mm256_madd_epi16(pairs, ones);
            }
#elif defined(__SSE2__)
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                __m128i bytes = _mm_set1_epi32(four ^ (int32_t)0x80808080);
                __m128i inputs = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8), halves[2];
                for (int i = 0; i < 2; i++) { /* four rows each: sums of two products, then of their pairs */
                    __m128i loaded = _mm_loadu_si128((const __m128i *)(weights + 16 * i));
                    __m128i low = _mm_madd_epi16(_mm_srai_epi16(_mm_unpacklo_epi8(loaded, loaded), 8), inputs);
                    __m128i high = _mm_madd_epi16(_mm_srai_epi16(_mm_unpackhi_epi8(loaded, loaded), 8), inputs);
                    __m128 first = _mm_shuffle_ps((__m128)low, (__m128)high, _MM_SHUFFLE(2, 0, 2, 0));
                    __m128 second = _mm_shuffle_ps((__m128)low, (__m128)high, _MM_SHUFFLE(3, 1, 3, 1));
                    halves[i] = _mm_add_epi32((__m128i)first, (__m128i)second);
                }
                Integers sum;
                memcpy(&sum, halves, sizeof sum);
                sums[g][b] += sum;
            }
#elif defined(__wasm_simd128__)
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                v128_t inputs = wasm_i16x8_extend_low_i8x16(wasm_i32x4_splat(four ^ (int32_t)0x80808080));
                v128_t halves[2];
                for (int i = 0; i < 2; i++) { /* four rows each: sums of two products, then of their pairs */
                    v128_t loaded = wasm_v128_load(weights + 16 * i);
                    v128_t low = wasm_i32x4_dot_i16x8(wasm_i16x8_extend_low_i8x16(loaded), inputs);
                    v128_t high = wasm_i32x4_dot_i16x8(wasm_i16x8_extend_high_i8x16(loaded), inputs);
                    halves[i] = wasm_i32x4_add(wasm_i32x4_shuffle(low, high, 0, 2, 4, 6),
                                               wasm_i32x4_shuffle(low, high, 1, 3, 5, 7));
                }
                Integers sum;
                memcpy(&sum, halves, sizeof sum);
                sums[g][b] += sum;
            }
#elif defined(__ARM_NEON)
            for (int b = 0; b < lanes; b++) {
                int32_t four;
                memcpy(&four, x + b * n + c, 4);
                int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four ^ (int32_t)0x80808080));
                int32x4_t halves[2];
                for (int i = 0; i < 2; i++) {
                    int8x16_t loaded = vld1q_s8(weights + 16 * i);
#ifdef __ARM_FEATURE_DOTPROD
                    halves[i] = vdotq_s32(vdupq_n_s32(0), loaded, inputs);
#else
                    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(loaded), vget_low_s8(inputs)));
                    int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(loaded), vget_high_s8(inputs)));
                    halves[i] = vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)),
                                             vpadd_s32(vget_low_s32(high), vget_high_s32(high)));
#endif
                }
                Integers sum;
                memcpy(&sum, halves, sizeof sum);
                sums[g][b] += sum;
            }
#else
            for (int b = 0; b < lanes; b++)
                for (int i = 0; i < GROUP; i++)
                    for (int j = 0; j < 4; j++) sums[g][b][i] += (int32_t)weights[4 * i + j] * (x[b * n + c + j] - 128);
#endif
        }
    for (int g = 0; g < groups; g++) {
#ifdef __AVX512VNNI__
        Integers zero = 128 * *(const Integers *)(m->sums + (group + g) * GROUP);
#else
        Integers zero = {0}; /* the loops above subtract the offset of 128 from the bytes */
#endif
        Floats scale = *(const Floats *)(m->scale + (group + g) * GROUP);
        for (int b = 0; b < lanes; b++)
            s[g][b] = __builtin_convertvector(sums[g][b] - zero, Floats) * scale * scales[b];
    }
}

/* The input of a product: floats and, for int8 weights, their rounding with its scale per lane. */
typedef struct {
    const float *floats;
    uint8_t *bytes;
    float *scales;
} Input;

ALWAYS void block(const Matrix *m, int64_t group, Input x, float *y, int add, int groups, int lanes) {
    Floats s[MAX_GROUPS][MAX_LANES] = {{{0}}};
    if (m->packed)
        block_int8(m, group, x.bytes, x.scales, groups, lanes, s);
    else
        block_float(m, group, x.floats, groups, lanes, s);
    for (int g = 0; g < groups; g++) {
        int64_t row = (group + g) * GROUP, left = m->rows - row;
        for (int b = 0; b < lanes; b++) {
            Floats value = s[g][b];
            if (m->bias) value += *(const Floats *)(m->bias + row);
            float *out = y + b * m->rows + row;
            if (left >= GROUP)
                *(Floats *)out = add ? *(Floats *)out + value : value;
            else
                for (int64_t i = 0; i < left; i++) out[i] = add ? out[i] + value[i] : value[i];
        }
    }
}

static void block_of(const Matrix *m, int64_t group, Input x, float *y, int add, int groups, int lanes) {
    switch (groups * 8 + lanes) {
        case 4 * 8 + 1: block(m, group, x, y, add, 4, 1); break;
        case 4 * 8 + 2: block(m, group, x, y, add, 4, 2); break;
        case 1 * 8 + 1: block(m, group, x, y, add, 1, 1); break;
        case 1 * 8 + 2: block(m, group, x, y, add, 1, 2); break;
#ifdef __AVX512BW__
        case 4 * 8 + 4: block(m, group, x, y, add, 4, 4); break;
        case 4 * 8 + 6: block(m, group, x, y, add, 4, 6); break;
        case 1 * 8 + 4: block(m, group, x, y, add, 1, 4); break;
        case 1 * 8 + 6: block(m, group, x, y, add, 1, 6); break;
#endif
    }
}

/* Rounds x [B, columns] to unsigned bytes round(127 x / max|x|) + 128, padded with 128 to `stride`. */
static void round_rows(const float *x, int64_t columns, int64_t stride, int64_t batch, uint8_t *bytes, float *scales) {
    for (int64_t b = 0; b < batch; b++) {
        const float *in = x + b * columns;
        uint8_t *out = bytes + b * stride;
        const int32_t *bits = (const int32_t *)in; /* magnitudes order as their bits do, with NaN the largest */
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

/* y [L, rows] = W x + bias, or y += W x + bias if `add`. `space` receives the rounded input. */
static void multiply(const Matrix *m, const float *x, float *y, int64_t lanes, int add, Input space) {
    int64_t groups = (m->rows + GROUP - 1) / GROUP;
    if (m->packed) round_rows(x, m->columns, m->stride, lanes, space.bytes, space.scales);
    for (int64_t group = 0, now; group < groups; group += now) {
        now = groups - group >= MAX_GROUPS ? MAX_GROUPS : 1;
        for (int64_t b = 0, some; b < lanes; b += some) {
            int64_t left = lanes - b;
            some = left >= MAX_LANES ? MAX_LANES : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            Input in = {x + b * m->columns, space.bytes + b * m->stride, space.scales + b};
            block_of(m, group, in, y + b * m->rows, add, (int)now, (int)some);
        }
    }
}

/* Computes cosines and sines [K / 2] of the rotary angles of a position. */
static void angles(int64_t head, int64_t position, float theta, float *cosines, float *sines) {
    int64_t half = head / 2;
    for (int64_t i = 0; i < half; i++) {
        float angle = (float)position * (float)pow(theta, -(double)i / half);
        cosines[i] = (float)cos(angle); /* in double, where C libraries agree after rounding */
        sines[i] = (float)sin(angle);
    }
}

static void rotate(float *x, int64_t head, const float *cosines, const float *sines) {
    int64_t half = head / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cosines[i] - second * sines[i];
        x[i + half] = second * cosines[i] + first * sines[i];
    }
}

/* S <- decay S + k v^T;  o = S^T q.  S is [K, K]. One step of attention/recurrence.py. */
static void recur(float *restrict S, const float *q, const float *k, const float *v, float decay, int64_t K,
                  float *restrict o) {
    memset(o, 0, K * sizeof(float));
    for (int64_t i = 0; i < K; i++) {
        float *row = S + i * K, key = k[i], query = q[i];
        for (int64_t j = 0; j < K; j++) {
            row[j] = decay * row[j] + key * v[j];
            o[j] += query * row[j];
        }
    }
}

/* S <- decay (I - beta k k^T) S + beta k v^T;  o = S^T q. One step of attention/delta.py; `held` is scratch [K]. */
static void recur_delta(float *restrict S, const float *q, const float *k, const float *v, float decay, float beta,
                        int64_t K, float *restrict o, float *restrict held) {
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
    float size = sqrtf(dot(x, x, n)), inverse = 1.0f / (size > 1e-12f ? size : 1e-12f);
    for (int64_t i = 0; i < n; i++) x[i] *= inverse;
}

/* Softmax attention over the last W positions; `scores` is scratch [W]. */
static void attend(const Model *m, float *keys, float *values, float *q, float *k, float *v, int64_t h,
                   int64_t position, float *scores, float *o) {
    int64_t K = m->head, W = m->window, seen = position + 1 < W ? position + 1 : W;
    memcpy(keys + (position % W) * m->inner + h * K, k, K * sizeof(float));
    memcpy(values + (position % W) * m->inner + h * K, v, K * sizeof(float));
    float most = -INFINITY, scale = 1.0f / sqrtf((float)K);
    for (int64_t s = 0; s < seen; s++) {
        scores[s] = dot(q, keys + s * m->inner + h * K, K) * scale;
        most = scores[s] > most ? scores[s] : most;
    }
    for (int64_t s = 0; s < seen; s++) scores[s] = exp_(scores[s] - most);
    float total = sum(scores, seen);
    memset(o, 0, K * sizeof(float));
    for (int64_t s = 0; s < seen; s++) {
        const float *value = values + s * m->inner + h * K;
        float weight = scores[s] / total;
        for (int64_t i = 0; i < K; i++) o[i] += weight * value[i];
    }
}

/* qkv += weighted sum of the last inputs and the current one, which then replaces the oldest in `inputs`. */
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

/* Linear attention with phi = elu + 1. If `turns` is given, the numerator is rotated and the denominator is not. A
 * denominator below 1e-30 is raised to it, as in attention/linear.py; the comparison keeps a NaN. */
static void attend_linear(const Model *m, float *S, float *z, float *q, float *k, const float *v, const float *turns,
                          float *o) {
    int64_t K = m->head;
    for (int64_t i = 0; i < K; i++) {
        q[i] = q[i] > 0 ? q[i] + 1 : exp_(q[i]);
        k[i] = k[i] > 0 ? k[i] + 1 : exp_(k[i]);
        z[i] += k[i];
    }
    float below = dot(q, z, K);
    if (turns) {
        rotate(q, K, turns, turns + K / 2);
        rotate(k, K, turns, turns + K / 2);
    }
    recur(S, q, k, v, 1.0f, K, o);
    below = below < 1e-30f ? 1e-30f : below;
    for (int64_t j = 0; j < K; j++) o[j] /= below;
}

/* Computes the mixer of one layer for one lane of row b: qkv [3 H K] and gates -> o [H K]. `turns` holds the cosines
 * and sines of the position. */
static void mix(const Model *m, const Layer *layer, State *state, int64_t b, int64_t position, const float *turns,
                float *qkv, const float *gates, float *o, float *scratch) {
    int64_t K = m->head, H = m->heads, inner = m->inner;
    if (layer->conv)
        convolve(qkv, state->inputs + b * (m->taps - 1) * 3 * inner, layer->conv, m->taps, 3 * inner, scratch);
    float *q = qkv, *k = qkv + inner, *v = qkv + 2 * inner;
    if (layer->kind != WINDOW && layer->kind != ELU)
        activate(qkv, (layer->kind == DELTA ? 3 : 2) * inner, SILU);
    for (int64_t h = 0; h < H; h++) {
        float *qh = q + h * K, *kh = k + h * K, *vh = v + h * K, *oh = o + h * K;
        if (layer->kind == WINDOW) {
            if (turns) {
                rotate(qh, K, turns, turns + K / 2);
                rotate(kh, K, turns, turns + K / 2);
            }
            float *keys = state->keys + b * m->window * inner, *values = state->values + b * m->window * inner;
            attend(m, keys, values, qh, kh, vh, h, position, scratch, oh);
            continue;
        }
        float *S = state->recurrent + (b * H + h) * K * K;
        if (layer->kind == ELU) {
            attend_linear(m, S, state->normalizer + (b * H + h) * K, qh, kh, vh, m->rotates_linear ? turns : NULL, oh);
            continue;
        }
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

/* Buffers for one pass over L lanes. */
typedef struct {
    float *x, *h, *wide, *o, *side, *gates, *turns, *scratch;
    Input rounded;
    float *memory;
} Space;

/* Returns the next `count` floats of a buffer and advances it. */
static float *carve(float **next, int64_t count) {
    float *start = *next;
    *next += count;
    return start;
}

/* Allocates the buffers; returns 1 if that fails. */
static int make_space(const Model *m, int64_t lanes, Space *space) {
    int64_t D = m->width, inner = m->inner, wide = longest(longest(3 * inner, D), m->layer[0].up.rows);
    int64_t scratch = longest(longest(m->window, 3 * inner), m->head), bytes = wide / 4 + 2;
    int64_t per_lane = 2 * D + wide + 2 * inner + 2 * m->heads + m->head + 1 + bytes;
    float *next = space->memory = malloc((lanes * per_lane + scratch) * sizeof(float));
    if (!next) return 1;
    space->x = carve(&next, lanes * D);
    space->h = carve(&next, lanes * D);
    space->wide = carve(&next, lanes * wide);
    space->o = carve(&next, lanes * inner);
    space->side = carve(&next, lanes * inner);
    space->gates = carve(&next, lanes * 2 * m->heads);
    space->turns = carve(&next, lanes * m->head);
    space->scratch = carve(&next, scratch);
    space->rounded.scales = carve(&next, lanes);
    space->rounded.bytes = (uint8_t *)carve(&next, lanes * bytes);
    return 0;
}

/* Computes the logits of the lanes with wanted >= 0. Lanes whose logits are adjacent are computed together, so that the
 * weights are read once. */
static void predict(const Model *m, int64_t lanes, const int64_t *wanted, float *logits, Space s) {
    int64_t D = m->width, V = m->head_matrix.rows;
    for (int64_t l = 0; l < lanes;) {
        int64_t first = -1, count = 0;
        for (; l < lanes && (wanted[l] < 0 || count == 0 || wanted[l] == first + count); l++) {
            if (wanted[l] < 0) continue;
            if (count == 0) first = wanted[l];
            layer_norm(s.x + l * D, s.h + count++ * D, D, m->norm, m->norm_bias, m->eps);
        }
        if (count == 0) return;
        multiply(&m->head_matrix, s.h, logits + first * V, count, 0, s.rounded);
        for (int64_t i = 0; i < count; i++) { /* int8 rounding hides a NaN: restore it */
            float whole = sum(s.h + i * D, D);
            if (!(whole - whole == 0))
                for (int64_t j = 0; j < V; j++) logits[(first + i) * V + j] = NAN;
        }
    }
}

/* x [D] = the embedding of a token. */
static void embed(const Model *m, int64_t id, float *x) {
    if (!m->token_scales) {
        memcpy(x, m->tokens + id * m->width, m->width * sizeof(float));
        return;
    }
    const int8_t *row = m->head_matrix.packed + (id - id % TILE) * m->head_matrix.stride + id % TILE * 4;
    for (int64_t i = 0; i < m->width; i++) x[i] = row[i / 4 * 4 * TILE + i % 4] * m->token_scales[id];
}

/* Computes xianliao_read for at most PASS lanes. */
static void pass(const Model *m, State *states, int64_t lanes, const int64_t *rows, const int64_t *ids,
                 const int64_t *speakers, const int64_t *positions, const int64_t *wanted, float *logits, Space s) {
    int64_t D = m->width, inner = m->inner, K = m->head;
    for (int64_t l = 0; l < lanes; l++) {
        embed(m, ids[l], s.x + l * D);
        for (int64_t i = 0; i < D; i++) {
            s.x[l * D + i] += m->speakers[speakers[l] * D + i];
            if (m->positions) s.x[l * D + i] += m->positions[positions[l] * D + i];
        }
        if (m->rotates) angles(K, positions[l], m->theta, s.turns + l * K, s.turns + l * K + K / 2);
    }
    for (int64_t n = 0; n < m->layers; n++) {
        const Layer *layer = m->layer + n;
        for (int64_t l = 0; l < lanes && states[n].latent; l++)
            for (int64_t i = 0; i < D; i++) s.x[l * D + i] += states[n].latent[rows[l] * D + i];
        for (int64_t l = 0; l < lanes; l++)
            layer_norm(s.x + l * D, s.h + l * D, D, layer->norm, layer->norm_bias, m->eps);
        multiply(&layer->qkv, s.h, s.wide, lanes, 0, s.rounded);
        if (layer->gate.rows) multiply(&layer->gate, s.h, s.gates, lanes, 0, s.rounded);
        for (int64_t l = 0; l < lanes; l++)
            mix(m, layer, states + n, rows[l], positions[l], m->rotates ? s.turns + l * K : NULL,
                s.wide + l * 3 * inner, s.gates + l * layer->gate.rows, s.o + l * inner, s.scratch);
        if (layer->output_gate.rows) {
            multiply(&layer->output_gate, s.h, s.side, lanes, 0, s.rounded);
            for (int64_t i = 0; i < lanes * inner; i++) s.o[i] *= silu_(s.side[i]);
        }
        multiply(&layer->out, s.o, s.x, lanes, 1, s.rounded);
        for (int64_t l = 0; l < lanes; l++)
            layer_norm(s.x + l * D, s.h + l * D, D, layer->norm2, layer->norm2_bias, m->eps);
        multiply(&layer->up, s.h, s.wide, lanes, 0, s.rounded);
        activate(s.wide, lanes * layer->down.columns, m->activation);
        multiply(&layer->down, s.wide, s.x, lanes, 1, s.rounded);
    }
    float *hidden = states[m->layers - 1].hidden;
    for (int64_t l = 0; l < lanes && hidden; l++)
        if (wanted[l] >= 0) layer_norm(s.x + l * D, hidden + rows[l] * D, D, m->norm, m->norm_bias, m->eps);
    predict(m, lanes, wanted, logits, s);
}

/* The part of the lanes of one call that one thread computes. */
typedef struct {
    const Model *m;
    State *states;
    int64_t lanes;
    const int64_t *rows, *ids, *speakers, *positions, *wanted;
    float *logits;
    int failed;
} Share;

static void *read_share(void *argument) {
    Share *a = argument;
    Space space;
    a->failed = make_space(a->m, a->lanes < PASS ? a->lanes : PASS, &space);
    for (int64_t l = 0; l < a->lanes && !a->failed; l += PASS) {
        int64_t now = a->lanes - l < PASS ? a->lanes - l : PASS;
        pass(a->m, a->states, now, a->rows + l, a->ids + l, a->speakers + l, a->positions + l, a->wanted + l, a->logits,
             space);
    }
    free(space.memory);
    return NULL;
}

/* Reads L tokens. Lane l is the next token of row rows[l]; the lanes of one row are adjacent and in order.
 * positions[l] is the number of tokens of the row before it. The logits [V] after lane l are written to
 * logits[wanted[l]]; -1 means none. The rows are divided among xianliao_threads threads. Returns 0, or 1 if memory
 * allocation fails. */
int xianliao_read(const Model *m, State *states, int64_t lanes, const int64_t *rows, const int64_t *ids,
                  const int64_t *speakers, const int64_t *positions, const int64_t *wanted, float *logits) {
#ifdef XIANLIAO_ONE_THREAD
    Share share = {m, states, lanes, rows, ids, speakers, positions, wanted, logits, 0};
    read_share(&share);
    return share.failed;
#else
    Share shares[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0}, failed = 0;
    int64_t count = lanes / MIN_LANES < xianliao_threads ? lanes / MIN_LANES : xianliao_threads, begin = 0;
    count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
    for (int64_t i = 0; i < count; i++) {
        int64_t end = lanes * (i + 1) / count;
        end = end < begin ? begin : end;
        while (end > begin && end < lanes && rows[end] == rows[end - 1]) end++; /* one thread reads the whole row */
        shares[i] = (Share){m, states, end - begin, rows + begin, ids + begin, speakers + begin, positions + begin,
                            wanted + begin, logits, 0};
        begin = end;
        if (i < count - 1 && shares[i].lanes) started[i] = !pthread_create(threads + i, NULL, read_share, shares + i);
    }
    for (int64_t i = count - 1; i >= 0; i--) {
        if (started[i])
            pthread_join(threads[i], NULL);
        else if (shares[i].lanes)
            read_share(shares + i);
        failed |= shares[i].failed;
    }
    return failed;
#endif
}

/* Returns the sum of the values [n] that are at least `bound`, none of which is negative. */
static double mass_from(const float *values, int64_t n, float bound) {
    EightDoubles parts = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        EightFloats some = *(const EightFloats *)(values + i);
        EightIntegers kept = (EightIntegers)some & (some >= bound); /* false for a NaN */
        parts += __builtin_convertvector((EightFloats)kept, EightDoubles);
    }
    for (int64_t j = 0; i + j < n; j++) parts[j] += values[i + j] >= bound ? values[i + j] : 0;
    return gather_doubles(parts);
}

/* weights [V] = exp((x - max x) / temperature), 0 where x is -inf; returns their sum and writes max x to `largest`. */
static double heat(const float *x, float *weights, int64_t V, float temperature, float *largest) {
    float top = -INFINITY, tops[GROUP], inverse = 1.0f / temperature;
    for (int64_t i = 0; i < GROUP; i++) tops[i] = -INFINITY;
    for (int64_t v = 0; v < V; v += GROUP)
        for (int64_t i = 0; i < GROUP && v + i < V; i++) tops[i] = x[v + i] > tops[i] ? x[v + i] : tops[i];
    for (int64_t i = 0; i < GROUP; i++) top = tops[i] > top ? tops[i] : top;
    for (int64_t v = 0; v < V; v++) weights[v] = x[v] == -INFINITY ? 0 : exp_((x[v] - top) * inverse);
    *largest = top;
    return mass_from(weights, V, 0);
}

/* Settings of a draw: temperature, mass of the nucleus, id of the end of turn, whether truncation always keeps it. */
typedef struct {
    float temperature;
    double top_p;
    int64_t end, keeps_end;
} Drawing;

/* The tokens that may be drawn, ordered by id; `all` [V] is scratch. */
typedef struct {
    float *all, *weights;
    int64_t *ids, count;
    double total, end; /* the sum of the weights, and the weight of the end of turn */
} Candidates;

/* Keeps the smallest number of largest weights whose sum reaches `mass`, ties in the order of ids, and the end of turn
 * if `how` always keeps it. */
static void truncate(Candidates *candidates, double mass, Drawing how) {
    /* Bisection over the bits of the threshold: positive floats order as their bits do. */
    union { int32_t bits; float value; } low = {.value = 0}, high = {.value = INFINITY}, middle;
    while (high.bits - low.bits > 1) {
        middle.bits = low.bits + (high.bits - low.bits) / 2;
        if (mass_from(candidates->weights, candidates->count, middle.value) >= mass)
            low = middle;
        else
            high = middle;
    }
    float threshold = low.value;
    double reached = mass_from(candidates->weights, candidates->count, high.value);
    int64_t count = 0;
    for (int64_t i = 0; i < candidates->count; i++) {
        float weight = candidates->weights[i];
        int in = weight > threshold || (weight == threshold && reached < mass);
        if (weight == threshold) reached += weight;
        candidates->ids[count] = candidates->ids[i];
        candidates->weights[count] = weight;
        count += in || (how.keeps_end && candidates->ids[i] == how.end);
    }
    candidates->count = count;
}

/* Computes the tokens that may be drawn, where the EOS floor leaves the share `left` to tokens other than the end of
 * turn. */
static void weigh(const float *scores, int64_t V, Drawing how, double left, Candidates *candidates) {
    float largest, bound = 1e-38f, *all = candidates->all;
    double total = heat(scores, all, V, how.temperature, &largest), mass = how.top_p * total;
    if (left < 1) {
        for (int64_t v = 0; v < V; v++) all[v] *= (float)left;
        all[how.end] += (1 - left) * total;
    }
    if (how.top_p < 1)
        for (bound = mass / 16; bound > 1e-30f && mass_from(all, V, bound) < mass;) bound /= 4;
    candidates->count = 0;
    for (int64_t v = 0; v < V; v++) { /* branch-free, because the branch would be mispredicted */
        candidates->weights[candidates->count] = all[v];
        candidates->ids[candidates->count] = v;
        candidates->count += all[v] >= bound || (v == how.end && how.keeps_end);
    }
    if (how.top_p < 1) truncate(candidates, mass, how);
    candidates->total = mass_from(candidates->weights, candidates->count, 0);
    candidates->end = 0;
    for (int64_t i = 0; i < candidates->count; i++)
        if (candidates->ids[i] == how.end) candidates->end = candidates->weights[i];
}

/* Draws a token for each row as chatbot/decoding/sampler.py does: by inversion, the end of turn first, then by id.
 * In: allowed, ruled [B, V]: logits before and after the repetition rules; options: temperature and top_p; left [B]:
 * share that the floor leaves to tokens other than the end; u [B]: uniform random numbers in [0, 1).
 * Out: tokens [B]; by_floor [B]: 1 if without the floor the end would not have been drawn; log_probs [B] of the tokens
 * under `allowed`. Returns 0, or 1 if memory allocation fails. */
int xianliao_draw(const float *allowed, const float *ruled, const double *options, const double *left, const double *u,
                  int64_t *tokens, int64_t *by_floor, double *log_probs, int64_t batch, int64_t V, int64_t end,
                  int64_t keeps_end) {
    Drawing how = {options[0], options[1], end, keeps_end};
    int64_t room = (V + 15) / 16 * 16;
    float *memory = aligned_alloc(64, room * (2 * sizeof(float) + sizeof(int64_t))), largest;
    Candidates candidates = {memory, memory + room, (int64_t *)(memory + 2 * room), 0, 0, 0};
    for (int64_t b = 0; b < batch && memory; b++) {
        weigh(ruled + b * V, V, how, left[b], &candidates);
        double rest = u[b] * candidates.total - candidates.end;
        tokens[b] = end;
        by_floor[b] = 0;
        for (int64_t i = 0; i < candidates.count && rest >= 0; i++) {
            if (candidates.ids[i] == end || candidates.weights[i] == 0) continue;
            tokens[b] = candidates.ids[i]; /* the last token also receives what rounding leaves over */
            rest -= candidates.weights[i];
        }
        if (tokens[b] == end && left[b] < 1) {
            weigh(ruled + b * V, V, how, 1, &candidates);
            by_floor[b] = u[b] * candidates.total >= candidates.end;
        }
        double total = heat(allowed + b * V, candidates.all, V, 1, &largest);
        log_probs[b] = allowed[b * V + tokens[b]] - largest - log(total);
    }
    free(memory);
    return memory == NULL;
}

/* Arguments of the short convolution for the channels [first, end) of x [B, T, C]; dy is NULL in the forward pass. */
typedef struct {
    const float *x, *dy, *taps;
    const int64_t *segments;
    float *y, *dw;
    int64_t batch, length, channels, size, first, end;
} Convolution;

static void *convolve_channels(void *argument) {
    Convolution *a = argument;
    const int64_t C = a->channels, *segments = a->segments;
    for (int64_t t = 0; t < a->batch * a->length; t++) {
        const float *now = a->x + t * C;
        float *restrict out = a->y + t * C;
        for (int64_t c = a->first; c < a->end; c++) out[c] = now[c] + a->taps[c] * now[c];
        for (int64_t back = 1; back < a->size && back <= t % a->length; back++) {
            if (segments && segments[t] != segments[t - back]) break;
            const float *before = now - back * C, *tap = a->taps + back * C;
            for (int64_t c = a->first; c < a->end; c++) out[c] += tap[c] * before[c];
        }
    }
    return NULL;
}

static void *convolve_channels_backward(void *argument) {
    Convolution *a = argument;
    const int64_t C = a->channels, *segments = a->segments;
    for (int64_t t = 0; t < a->batch * a->length; t++) {
        const float *now = a->x + t * C, *grad = a->dy + t * C;
        float *restrict out = a->y + t * C, *restrict sum = a->dw;
        for (int64_t c = a->first; c < a->end; c++) {
            out[c] = grad[c] + a->taps[c] * grad[c];
            sum[c] += grad[c] * now[c];
        }
        for (int64_t back = 1; back < a->size && t % a->length + back < a->length; back++) {
            if (segments && segments[t] != segments[t + back]) break;
            const float *after = grad + back * C, *tap = a->taps + back * C;
            float *restrict gathered = a->dw + back * C;
            for (int64_t c = a->first; c < a->end; c++) {
                out[c] += tap[c] * after[c];
                gathered[c] += after[c] * now[c];
            }
        }
    }
    return NULL;
}

enum { THREAD_CHANNELS = 64, THREAD_VALUES = 1 << 18 }; /* fewer do not pay for a thread */

/* Divides the channels among xianliao_threads threads. Each channel is computed by one thread in the order of the
 * tokens, so the result does not depend on the number of threads. */
static void over_channels(Convolution whole, void *(*compute)(void *)) {
    int64_t values = whole.batch * whole.length * whole.channels, count = xianliao_threads;
    count = count > values / THREAD_VALUES ? values / THREAD_VALUES : count;
    count = count > whole.channels / THREAD_CHANNELS ? whole.channels / THREAD_CHANNELS : count;
    count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
#ifdef XIANLIAO_ONE_THREAD
    count = 1;
#else
    pthread_t threads[MAX_THREADS];
#endif
    Convolution parts[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int64_t i = 0; i < count; i++) {
        parts[i] = whole;
        parts[i].first = i ? parts[i - 1].end : 0;
        parts[i].end = i < count - 1 ? whole.channels * (i + 1) / count / 16 * 16 : whole.channels; /* cache lines */
#ifndef XIANLIAO_ONE_THREAD
        if (i < count - 1) started[i] = !pthread_create(threads + i, NULL, compute, parts + i);
#endif
    }
    for (int64_t i = count - 1; i >= 0; i--)
        if (!started[i]) compute(parts + i);
#ifndef XIANLIAO_ONE_THREAD
    for (int64_t i = 0; i < count; i++)
        if (started[i]) pthread_join(threads[i], NULL);
#endif
}

/* The short convolution over whole rows, for training: x, y [B, T, C]; segments [B, T] or NULL; taps [S, C].
 * y_t = x_t + sum_i w_i x_{t-i} within a segment (chatbot/model/attention/convolution.py). */
void xianliao_convolve(const float *x, const int64_t *segments, const float *taps, float *y, int64_t batch,
                       int64_t length, int64_t channels, int64_t size) {
    Convolution whole = {x, NULL, taps, segments, y, NULL, batch, length, channels, size, 0, channels};
    over_channels(whole, convolve_channels);
}

/* Gradients of the short convolution: dx [B, T, C] is overwritten, dw [S, C] is added to. */
void xianliao_convolve_backward(const float *x, const float *dy, const int64_t *segments, const float *taps, float *dx,
                                float *dw, int64_t batch, int64_t length, int64_t channels, int64_t size) {
    Convolution whole = {x, dy, taps, segments, dx, dw, batch, length, channels, size, 0, channels};
    over_channels(whole, convolve_channels_backward);
}
