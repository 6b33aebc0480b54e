/* Which build of step.c this processor runs. A library for every processor of a kind has several builds. */
#ifndef XIANLIAO_PROCESSOR_H
#define XIANLIAO_PROCESSOR_H
#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#define BUILDS(one) one(base) one(avx2) one(avx512)

/* By cpuid and not __builtin_cpu_supports, which answers no to everything where zig links its own run-time library. */
static inline int best_build(void) {
    const uint32_t AVX_STATE = 0x6, AVX512_STATE = 0xe6, FMA_AVX_SAVED = 1u << 12 | 1u << 27 | 1u << 28, AVX2 = 1u << 5;
    const uint32_t AVX512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, VNNI = 1u << 11; /* F, DQ, BW, VL */
    uint32_t a, b, c, d, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & FMA_AVX_SAVED) != FMA_AVX_SAVED) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0)); /* registers that the system keeps */
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2) || (saved & AVX_STATE) != AVX_STATE) return 0;
    return (b & AVX512) == AVX512 && c & VNNI && (saved & AVX512_STATE) == AVX512_STATE ? 2 : 1;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#define BUILDS(one) one(base) one(dotprod)

static inline int best_build(void) { return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */ }
#else
#define BUILDS(one) one(base)

static inline int best_build(void) { return 0; }
#endif
#endif
