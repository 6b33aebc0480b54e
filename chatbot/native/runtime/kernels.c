/* step.c is built once per instruction set with its two functions renamed; the processor decides at run time.
 * XL_NATIVE: one build for the machine that compiles. */
#include "../processor.h"
#include "step.h"
#ifdef XL_NATIVE
#undef BUILDS
#define BUILDS(one) one(base)
#endif

#define DECLARE(name)                                                                                            \
    int xianliao_read_##name(const Model *, State *, int64_t, const int64_t *, const int64_t *, const int64_t *, \
                             const int64_t *, const int64_t *, float *);                                         \
    int xianliao_draw_##name(const float *, const float *, const double *, const double *, const double *,       \
                             int64_t *, int64_t *, double *, int64_t, int64_t, int64_t, int64_t);
#define KERNEL(name) {#name, xianliao_read_##name, xianliao_draw_##name},

BUILDS(DECLARE)

Kernel choose_kernel(void) {
    static const Kernel kernels[] = {BUILDS(KERNEL)};
#ifdef XL_NATIVE
    return kernels[0];
#else
    return kernels[best_build()];
#endif
}
