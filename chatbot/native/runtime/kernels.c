/* step.c is built once per instruction set with its two functions renamed; the processor decides at run time.
 * XL_NATIVE: one build for the machine that compiles. */
#include "step.h"

#define DECLARE(name)                                                                                            \
    int xianliao_read_##name(const Model *, State *, int64_t, const int64_t *, const int64_t *, const int64_t *, \
                             const int64_t *, const int64_t *, float *);                                         \
    int xianliao_draw_##name(const float *, const float *, const double *, const double *, const double *,       \
                             int64_t *, int64_t *, double *, int64_t, int64_t, int64_t, int64_t);
#define KERNEL(name) ((Kernel){#name, xianliao_read_##name, xianliao_draw_##name})

DECLARE(base)
#if !defined(XL_NATIVE) && defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)

Kernel choose_kernel(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return KERNEL(avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return KERNEL(avx2);
    return KERNEL(base);
}
#elif !defined(XL_NATIVE) && defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
DECLARE(dotprod)

Kernel choose_kernel(void) {
    return getauxval(AT_HWCAP) & (1 << 20) /* HWCAP_ASIMDDP */ ? KERNEL(dotprod) : KERNEL(base);
}
#else
Kernel choose_kernel(void) { return KERNEL(base); }
#endif
