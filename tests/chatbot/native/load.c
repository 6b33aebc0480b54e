/* Loads a prebuilt library as Python does, and prints what it computes: load LIBRARY, for emulators. */
#include <stdint.h>
#include <stdio.h>
#if defined(_WIN32)
#include <windows.h>
static void *open_library(const char *path) { return (void *)LoadLibraryA(path); }
static void *symbol(void *library, const char *name) { return (void *)GetProcAddress((HMODULE)library, name); }
#else
#include <dlfcn.h>
static void *open_library(const char *path) { return dlopen(path, RTLD_NOW); }
static void *symbol(void *library, const char *name) { return dlsym(library, name); }
#endif

typedef int (*Draw)(const float *, const float *, const double *, const double *, const double *, int64_t *, int64_t *,
                    double *, int64_t, int64_t, int64_t, int64_t);
typedef void (*Convolve)(const float *, const int64_t *, const float *, float *, int64_t, int64_t, int64_t, int64_t);

enum { V = 50, B = 4, T = 6, C = 8, S = 3 };

int main(int count, char **arguments) {
    void *library = count == 2 ? open_library(arguments[1]) : NULL;
    if (!library) return fprintf(stderr, "the library cannot be loaded\n"), 1;
    int64_t (*choose)(int64_t) = (int64_t(*)(int64_t))symbol(library, "xianliao_choose");
    Draw draw = (Draw)symbol(library, "xianliao_draw");
    Convolve convolve = (Convolve)symbol(library, "xianliao_convolve");
    int64_t *group = symbol(library, "xianliao_group"), *threads = symbol(library, "xianliao_threads");
    if (!choose || !draw || !convolve || !group || !threads || *group < 8 || *threads != 1 || !symbol(library, "xianliao_read"))
        return fprintf(stderr, "a symbol is missing or wrong\n"), 1;
    for (int64_t build = choose(99); build >= 0; build--) {
        if (choose(build) != build) return 1;
        float logits[B * V], x[T * C], taps[S * C], y[T * C];
        double options[] = {0.7, 0.9}, left[B], u[B], log_probs[B];
        int64_t tokens[B], by_floor[B];
        for (int i = 0; i < B * V; i++) logits[i] = (float)((i * 37 + i / 7) % 41) / 8;
        for (int b = 0; b < B; b++) left[b] = b % 2 ? 0.5 : 1, u[b] = (b + 0.5) / B;
        for (int i = 0; i < T * C; i++) x[i] = (float)(i * 13 % 29) / 16;
        for (int i = 0; i < S * C; i++) taps[i] = (float)(i * 5 % 11) / 8;
        if (draw(logits, logits, options, left, u, tokens, by_floor, log_probs, B, V, 2, 1)) return 1;
        convolve(x, NULL, taps, y, 1, T, C, S);
        printf("%d", (int)build);
        for (int b = 0; b < B; b++) printf(" %d %d %.9f", (int)tokens[b], (int)by_floor[b], log_probs[b]);
        for (int i = 0; i < T * C; i++) printf(" %.6f", y[i]);
        printf("\n");
    }
    return 0;
}
