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
#include <cpuid.h>
DECLARE(avx2)
DECLARE(avx512)

/* By cpuid and not __builtin_cpu_supports, which answers no to everything where zig links its own run-time library. */
Kernel choose_kernel(void) {
    const uint32_t AVX_STATE = 0x6, AVX512_STATE = 0xe6, FMA_AVX_SAVED = 1u << 12 | 1u << 27 | 1u << 28, AVX2 = 1u << 5;
    const uint32_t AVX512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, VNNI = 1u << 11; /* F, DQ, BW, VL */
    uint32_t a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & FMA_AVX_SAVED) != FMA_AVX_SAVED) return KERNEL(base);
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0)); /* registers that the system keeps */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2) || (saved & AVX_STATE) != AVX_STATE) return KERNEL(base);
    if ((b & AVX512) == AVX512 && c & VNNI && (saved & AVX512_STATE) == AVX512_STATE) return KERNEL(avx512);
    return KERNEL(avx2);
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
