/* Opening of a weights file. Every size follows from the numbers of the header, which are checked first; the sum must be
 * the size of the file. Ids inside are checked too, so that no later code has to. */
#include "weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#elif !defined(__wasm__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

enum { HEADER = 512, VERSION = 6, MAX_STATE = 256 << 20 };
enum {
    VOCABULARY, WIDTH, LAYERS, HEADS, HEAD, INNER, WINDOW_SIZE, TAPS, ACTIVATION, ROTATES, ROTATES_LINEAR, GATED_OUTPUT,
    BIASED, SPEAKERS, CONTEXT_TOKENS, CLS, END, MERGES, CHARACTERS, RANGES, PIECE_BYTES, TABLE_BYTES,
    BANNED_BYTES, SAFETY_BYTES, NUMBERS
};

static const int32_t LIMITS[NUMBERS][2] = {
    [VOCABULARY] = {300, 1 << 20}, [WIDTH] = {1, 1 << 14}, [LAYERS] = {1, 256}, [HEADS] = {1, 256}, [HEAD] = {2, 1024},
    [INNER] = {1, 1 << 17}, [WINDOW_SIZE] = {1, 1 << 16}, [TAPS] = {0, 16}, [ACTIVATION] = {0, 3}, [ROTATES] = {0, 1},
    [ROTATES_LINEAR] = {0, 1}, [GATED_OUTPUT] = {0, 1}, [BIASED] = {0, 1}, [SPEAKERS] = {2, 16},
    [CONTEXT_TOKENS] = {8, 1 << 20}, [CLS] = {0, 1 << 20}, [END] = {0, 1 << 20}, [MERGES] = {0, 1 << 22},
    [CHARACTERS] = {0, 1 << 21}, [RANGES] = {1, 1 << 21}, [PIECE_BYTES] = {0, 1 << 28}, [TABLE_BYTES] = {1, 1 << 24},
    [BANNED_BYTES] = {0, 1 << 24}, [SAFETY_BYTES] = {0, 1 << 26},
};

/* CRC-32 of zlib, eight tables of Kounavis and Berry. */
static uint32_t checksum(const uint8_t *bytes, uint64_t size) {
    static uint32_t table[8][256];
    if (!table[0][1])
        for (int t = 7; t >= 0; t--) /* table[0][1] is set last, so that another thread never sees half of it */
            for (int i = 255; i >= 0; i--) {
                uint32_t c = (uint32_t)i;
                for (int k = 0; k < 8 * (t + 1); k++) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
                table[t][i] = c;
            }
    uint32_t c = ~0u;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t a, b;
        memcpy(&a, bytes, 4);
        memcpy(&b, bytes + 4, 4);
        a ^= c;
        c = table[7][a & 255] ^ table[6][a >> 8 & 255] ^ table[5][a >> 16 & 255] ^ table[4][a >> 24] ^
            table[3][b & 255] ^ table[2][b >> 8 & 255] ^ table[1][b >> 16 & 255] ^ table[0][b >> 24];
    }
    while (size--) c = c >> 8 ^ table[0][(c ^ *bytes++) & 255];
    return ~c;
}

typedef struct {
    const uint8_t *file;
    uint64_t at, size;
    int missing;
} Parts;

/* The next array of the file; each begins at a multiple of 64. */
static const void *part(Parts *parts, uint64_t count, uint64_t width) {
    uint64_t start = (parts->at + 63) / 64 * 64, bytes = count * width;
    parts->missing |= start > parts->size || bytes > parts->size - start;
    if (parts->missing) return NULL;
    parts->at = start + bytes;
    return parts->file + start;
}

static Matrix matrix(Parts *parts, int64_t rows, int64_t columns, int biased) {
    int64_t stride = (columns + 3) / 4 * 4, padded = (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
    Matrix m = {0};
    m.rows = rows, m.columns = columns, m.stride = stride;
    m.packed = part(parts, (uint64_t)(padded * stride), 1);
    m.scale = part(parts, (uint64_t)padded, 4);
    m.sums = part(parts, (uint64_t)padded, 4);
    m.bias = biased ? part(parts, (uint64_t)padded, 4) : NULL;
    return m;
}

static const char *settings_fault(const double *s) {
    static const double limits[XL_SETTINGS][2] = {
        [XL_GREEDY] = {0, 1}, [XL_CANDIDATES] = {1, 64}, [XL_TEMPERATURE] = {.01, 100}, [XL_TOP_K] = {0, 1e6},
        [XL_TOP_P] = {0, 1}, [XL_MIN_P] = {0, 1}, [XL_TYPICAL_P] = {0, 1}, [XL_PENALTY] = {1, 10},
        [XL_NGRAM] = {0, 1e6}, [XL_REPEAT_COST] = {0, (double)INFINITY}, [XL_KEEP_EOS] = {0, 1},
        [XL_FLOOR_START] = {-1, 1e6}, [XL_FLOOR_DELTA] = {1, 1e6}, [XL_MAX_REPLY] = {-1, 1e6}, [XL_MIN_REPLY] = {0, 1e6}};
    for (int i = 0; i < XL_SETTINGS; i++) {
        if (!(s[i] >= limits[i][0] && s[i] <= limits[i][1])) return "A decoding setting is out of its range.";
        int whole = i != XL_TEMPERATURE && i != XL_TOP_P && i != XL_MIN_P && i != XL_TYPICAL_P && i != XL_PENALTY &&
                    i != XL_REPEAT_COST;
        if (whole && s[i] != (double)(int32_t)s[i]) return "A decoding setting must be a whole number.";
    }
    if (s[XL_TOP_P] == 0 || s[XL_TYPICAL_P] == 0) return "top_p and typical_p must be above 0.";
    if (s[XL_GREEDY] && s[XL_CANDIDATES] > 1) return "Candidates are sampled: remove candidates or greedy.";
    if (s[XL_FLOOR_START] < 0 && s[XL_MAX_REPLY] < 0) return "Without a floor a reply might never end: give max_reply_tokens.";
    if (s[XL_FLOOR_START] >= 0 && s[XL_FLOOR_START] < s[XL_MIN_REPLY]) return "floor_start_tokens must not be below min_reply_tokens.";
    if (s[XL_MAX_REPLY] == 0 || (s[XL_MAX_REPLY] > 0 && s[XL_MAX_REPLY] < s[XL_MIN_REPLY]))
        return "max_reply_tokens must be at least min_reply_tokens.";
    return NULL;
}

const char *check_settings(const double *settings) { return settings_fault(settings); }

static int ids_are_known(const int32_t *ids, int64_t count, int64_t step, int32_t vocabulary) {
    for (int64_t i = 0; i < count; i += step)
        if (ids[i] < 0 || ids[i] >= vocabulary) return 0;
    return 1;
}

static const char *load_merges(Bot *bot, const int32_t *merges, int64_t count) {
    uint64_t slots = 2;
    while (slots < 2 * (uint64_t)count + 2) slots *= 2;
    bot->merges = calloc(slots, sizeof *bot->merges);
    bot->merge_mask = slots - 1;
    if (!bot->merges) return "Memory is short.";
    if (!ids_are_known(merges, 3 * count, 1, bot->vocabulary)) return "The weights file is damaged: wrong ids. Copy it again.";
    int64_t probes = 16 * count;  // few of random keys: 1.5 each; keys that were chosen to collide would need count * count
    for (int64_t i = 0; i < count; i++) {
        uint64_t key = ((uint64_t)merges[3 * i] << 32 | (uint32_t)merges[3 * i + 1]) + 1, slot = key * 0x9e3779b97f4a7c15u >> 20;
        while (bot->merges[slot & bot->merge_mask].key && bot->merges[slot & bot->merge_mask].key != key) {
            if (!probes--) return "The weights file is damaged: its merges collide. Export it again.";
            slot++;
        }
        Merge *merge = bot->merges + (slot & bot->merge_mask);
        if (!merge->key) *merge = (Merge){key, (int32_t)i, merges[3 * i + 2]};
    }
    return NULL;
}

static const char *load_tokenizer(Bot *bot, Parts *parts, const int32_t *n) {
    int64_t V = n[VOCABULARY];
    bot->offsets = part(parts, (uint64_t)V + 1, 4);
    bot->pieces = part(parts, (uint64_t)n[PIECE_BYTES], 1);
    bot->special = part(parts, (uint64_t)V, 1);
    bot->byte_ids = part(parts, 256, 4);
    bot->character_ids = part(parts, 2 * (uint64_t)n[CHARACTERS], 4);
    const int32_t *merges = part(parts, 3 * (uint64_t)n[MERGES], 4);
    bot->ranges = part(parts, 2 * (uint64_t)n[RANGES], 4);
    const uint8_t *tables = part(parts, (uint64_t)n[TABLE_BYTES], 1), *banned = part(parts, (uint64_t)n[BANNED_BYTES], 1);
    const uint8_t *safety = part(parts, (uint64_t)n[SAFETY_BYTES], 1);
    if (parts->missing) return "The weights file is cut off. Copy it again.";
    bot->character_count = n[CHARACTERS], bot->range_count = n[RANGES];
    int fits = bot->offsets[0] == 0 && bot->offsets[V] == (uint32_t)n[PIECE_BYTES];
    for (int64_t v = 0; v < V; v++) fits &= bot->offsets[v] <= bot->offsets[v + 1];
    fits &= ids_are_known(bot->byte_ids, 256, 1, bot->vocabulary);
    fits &= ids_are_known(bot->character_ids + 1, 2 * (int64_t)n[CHARACTERS] - 1, 2, bot->vocabulary);
    fits &= bot->ranges[0] == 0 && !bot->special[bot->end];
    if (!fits) return "The weights file is damaged: its vocabulary is broken. Copy it again.";
    const char *fault = load_merges(bot, merges, n[MERGES]);
    if (fault) return fault;
    if (load_characters(bot, tables, n[TABLE_BYTES]))
        return "The weights file is damaged: its tables of characters are broken. Copy it again.";
    if ((fault = load_banned(bot, banned, n[BANNED_BYTES]))) return fault;
    if (n[SAFETY_BYTES] && !(bot->safety = load_safety(safety, n[SAFETY_BYTES])))
        return "The weights file is damaged: its safety rules are broken. Copy it again.";
    return NULL;
}

static const char *load_network(Bot *bot, Parts *parts, const int32_t *n, const double *floats) {
    int64_t D = n[WIDTH], inner = (int64_t)n[HEADS] * n[HEAD], state = 0;
    const int32_t *kinds = part(parts, (uint64_t)n[LAYERS], 4);
    bot->layers = calloc((size_t)n[LAYERS], sizeof *bot->layers);
    if (!bot->layers) return "Memory is short.";
    Model *m = &bot->model;
    *m = (Model){n[LAYERS], D, n[HEADS], n[HEAD], inner, n[WINDOW_SIZE], n[TAPS], n[ACTIVATION], n[ROTATES], n[ROTATES_LINEAR],
                 (float)floats[0], (float)floats[1], NULL, NULL, NULL, NULL, NULL, {0}, bot->layers, NULL};
    m->token_scales = part(parts, (uint64_t)n[VOCABULARY], 4);
    m->speakers = part(parts, (uint64_t)n[SPEAKERS] * (uint64_t)D, 4);
    m->norm = part(parts, (uint64_t)D, 4);
    m->norm_bias = n[BIASED] ? part(parts, (uint64_t)D, 4) : NULL;
    m->head_matrix = matrix(parts, n[VOCABULARY], D, 0);
    for (int64_t i = 0; i < n[LAYERS] && !parts->missing; i++) {
        Layer *layer = bot->layers + i;
        layer->kind = kinds[i];
        if (layer->kind != WINDOW && layer->kind != ELU) return "The weights file has a layer of an unknown kind. Export it again.";
        layer->norm = part(parts, (uint64_t)D, 4);
        layer->norm_bias = n[BIASED] ? part(parts, (uint64_t)D, 4) : NULL;
        layer->norm2 = part(parts, (uint64_t)D, 4);
        layer->norm2_bias = n[BIASED] ? part(parts, (uint64_t)D, 4) : NULL;
        layer->qkv = matrix(parts, 3 * inner, D, n[BIASED]);
        layer->out = matrix(parts, D, inner, n[BIASED]);
        if (n[GATED_OUTPUT]) layer->output_gate = matrix(parts, inner, D, 0);
        layer->up = matrix(parts, n[INNER], D, n[BIASED]);
        layer->down = matrix(parts, D, n[INNER], n[BIASED]);
        layer->conv = n[TAPS] ? part(parts, (uint64_t)n[TAPS] * 3 * (uint64_t)inner, 4) : NULL;
        state += 4 * (layer->kind == ELU ? inner * (n[HEAD] + 1) : 2 * inner * n[WINDOW_SIZE]) + 12 * n[TAPS] * inner;
    }
    if (parts->missing) return "The weights file is cut off. Copy it again.";
    if (parts->at != parts->size) return "The weights file is longer than its header says. Copy it again.";
    if (state > MAX_STATE) return "The weights file asks for too much memory for one dialogue. Export it again.";
    return NULL;
}

static const char *load(Bot *bot) {
    uint32_t word[2];
    uint64_t stored;
    if (bot->size < HEADER || memcmp(bot->file, "xianliao", 8)) return "This is not a weights file of xianliao-export --to lite.";
    memcpy(word, bot->file + 8, sizeof word);
    memcpy(&stored, bot->file + 16, sizeof stored);
    if (word[0] != VERSION) return "The weights file is of another version than this runtime. Export it again with this version.";
    if (stored != bot->size) return "The weights file is cut off or too long. Copy it again.";
    if (checksum(bot->file + 16, bot->size - 16) != word[1]) return "The weights file is damaged: its checksum is wrong. Copy it again.";
    const int32_t *n = (const int32_t *)(bot->file + 24);
    const double *floats = (const double *)(bot->file + 24 + 32 * 4);
    for (int i = 0; i < NUMBERS; i++)
        if (n[i] < LIMITS[i][0] || n[i] > LIMITS[i][1]) return "The weights file is damaged: a size is out of range. Copy it again.";
    if (n[CLS] >= n[VOCABULARY] || n[END] >= n[VOCABULARY] || n[HEAD] % 2 || n[TAPS] == 1 || (int64_t)n[HEADS] * n[HEAD] > 1 << 16)
        return "The weights file is damaged: its sizes do not fit. Copy it again.";
    memcpy(bot->settings, floats + 2, sizeof bot->settings);
    bot->vocabulary = n[VOCABULARY], bot->speakers = n[SPEAKERS], bot->context = n[CONTEXT_TOKENS];
    bot->cls = n[CLS], bot->end = n[END];
    const char *fault = settings_fault(bot->settings);
    Parts parts = {bot->file, HEADER, bot->size, 0};
    if (!fault) fault = load_tokenizer(bot, &parts, n);
    if (!fault) fault = load_network(bot, &parts, n, floats);
    bot->kernel = choose_kernel();
    return fault;
}

static void unmap(Bot *bot) {
    if (!bot->mapping) return;
#if defined(_WIN32)
    UnmapViewOfFile(bot->mapping);
#elif !defined(__wasm__)
    munmap(bot->mapping, bot->size);
#endif
}

void xl_close(Bot *bot) {
    if (!bot) return;
    free_safety(bot->safety);
    free_banned(&bot->banned);
    free(bot->characters.unreadable);
    free(bot->merges);
    free(bot->layers);
    unmap(bot);
    free(bot);
}

static Bot *finish(Bot *bot, const char *failure, char *fault, int64_t fault_bytes) {
    if (!failure && bot) failure = load(bot);
    if (!failure) return bot;
    if (fault_bytes > 0) snprintf(fault, (size_t)fault_bytes, "%s", failure);
    xl_close(bot);
    return NULL;
}

Bot *xl_open_memory(const void *bytes, int64_t size, char *fault, int64_t fault_bytes) {
    Bot *bot = calloc(1, sizeof *bot);
    if (!bot || size < 0) return finish(bot, "Memory is short.", fault, fault_bytes);
    bot->file = bytes;
    bot->size = (uint64_t)size;
    return finish(bot, NULL, fault, fault_bytes);
}

Bot *xl_open(const char *path, char *fault, int64_t fault_bytes) {
    Bot *bot = calloc(1, sizeof *bot);
    const char *failure = bot ? "The weights file cannot be opened." : "Memory is short.";
#if defined(_WIN32)
    wchar_t wide[32768];
    LARGE_INTEGER size;
    if (bot && MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, 32768)) {
        HANDLE file = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
        HANDLE view = NULL;
        if (file != INVALID_HANDLE_VALUE && GetFileSizeEx(file, &size) && size.QuadPart > 0)
            view = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
        if (view && (bot->mapping = MapViewOfFile(view, FILE_MAP_READ, 0, 0, 0))) {
            bot->size = (uint64_t)size.QuadPart;
            failure = NULL;
        }
        if (view) CloseHandle(view);
        if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
    }
#elif !defined(__wasm__)
    int file = bot ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat status;
    if (file >= 0 && !fstat(file, &status) && S_ISREG(status.st_mode) && status.st_size > 0) {
        void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, file, 0);
        if (memory != MAP_FAILED) {
            bot->mapping = memory;
            bot->size = (uint64_t)status.st_size;
            failure = NULL;
        }
    }
    if (file >= 0) close(file);
#else
    (void)path;
#endif
    if (bot) bot->file = bot->mapping;
    return finish(bot, failure, fault, fault_bytes);
}

const double *xl_settings(const Bot *bot) { return bot->settings; }

const char *xl_kernel(const Bot *bot) { return bot->kernel.name; }
