/* A prebuilt library for chatbot/native/library.py: several builds of step.c, of which the processor's best is called.
 * It has the symbols of a library that is compiled on the machine that runs it. */
#include "processor.h"
#include "runtime/step.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef void (*Convolve)(const float *, const int64_t *, const float *, float *, int64_t, int64_t, int64_t, int64_t);
typedef void (*ConvolveBackward)(const float *, const float *, const int64_t *, const float *, float *, float *, int64_t,
                                 int64_t, int64_t, int64_t);
typedef struct {
    Read read;
    Draw draw;
    Convolve convolve;
    ConvolveBackward convolve_backward;
    const int64_t *group;
} Build;

#define DECLARE(name)                                                                                                \
    int xianliao_read_##name(const Model *, State *, int64_t, const int64_t *, const int64_t *, const int64_t *,     \
                             const int64_t *, const int64_t *, float *);                                             \
    int xianliao_draw_##name(const float *, const float *, const double *, const double *, const double *, int64_t *, \
                             int64_t *, double *, int64_t, int64_t, int64_t, int64_t);                               \
    void xianliao_convolve_##name(const float *, const int64_t *, const float *, float *, int64_t, int64_t, int64_t, \
                                  int64_t);                                                                          \
    void xianliao_convolve_backward_##name(const float *, const float *, const int64_t *, const float *, float *,    \
                                           float *, int64_t, int64_t, int64_t, int64_t);                             \
    extern const int64_t xianliao_group_##name;
#define BUILD(name)                                                                                    \
    {xianliao_read_##name, xianliao_draw_##name, xianliao_convolve_##name, xianliao_convolve_backward_##name, \
     &xianliao_group_##name},

BUILDS(DECLARE)

static const Build builds[] = {BUILDS(BUILD)};
static Build chosen;
EXPORT int64_t xianliao_threads = 1; /* set by chatbot/native/library.py */
EXPORT int64_t xianliao_group = 1;

/* Chooses the best build for this processor, but none after number `most`, and returns its number. Weights that were
 * laid out for another build cannot be read afterwards. */
EXPORT int64_t xianliao_choose(int64_t most) {
    int64_t best = best_build();
    best = best < most ? best : most < 0 ? 0 : most;
    chosen = builds[best];
    xianliao_group = *chosen.group;
    return best;
}

__attribute__((constructor)) static void choose_best(void) { xianliao_choose(INT64_MAX); }

EXPORT int xianliao_read(const Model *m, State *states, int64_t lanes, const int64_t *rows, const int64_t *ids,
                         const int64_t *speakers, const int64_t *positions, const int64_t *wanted, float *logits) {
    return chosen.read(m, states, lanes, rows, ids, speakers, positions, wanted, logits);
}

EXPORT int xianliao_draw(const float *allowed, const float *ruled, const double *options, const double *left,
                         const double *u, int64_t *tokens, int64_t *by_floor, double *log_probs, int64_t batch,
                         int64_t V, int64_t end, int64_t keeps_end) {
    return chosen.draw(allowed, ruled, options, left, u, tokens, by_floor, log_probs, batch, V, end, keeps_end);
}

EXPORT void xianliao_convolve(const float *x, const int64_t *segments, const float *taps, float *y, int64_t batch,
                              int64_t length, int64_t channels, int64_t size) {
    chosen.convolve(x, segments, taps, y, batch, length, channels, size);
}

EXPORT void xianliao_convolve_backward(const float *x, const float *dy, const int64_t *segments, const float *taps,
                                       float *dx, float *dw, int64_t batch, int64_t length, int64_t channels,
                                       int64_t size) {
    chosen.convolve_backward(x, dy, segments, taps, dx, dw, batch, length, channels, size);
}
