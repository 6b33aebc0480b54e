/* Text to ids and back: UTF-8, and a byte-fallback BPE over the pieces of
 *
 *     \p{Han}+ | ?[\p{L}&&[^\p{Han}]]+ | \p{N} | ?[^\s\p{L}\p{N}]+ | \s+
 */
#include <stdlib.h>
#include <string.h>

#include "weights.h"

enum { HAN = 1, LETTER = 2, NUMBER = 4, SPACE = 8, OTHER = 16 }; /* which alternatives a character continues */

void push(Numbers *numbers, int32_t value) {
    if (numbers->count == numbers->room && !numbers->failed) {
        int64_t room = numbers->room ? 2 * numbers->room : 64;
        int32_t *data = realloc(numbers->data, (size_t)room * sizeof *data);
        numbers->failed = !data;
        if (data) numbers->data = data, numbers->room = room;
    }
    if (!numbers->failed) numbers->data[numbers->count++] = value;
}

/* Reads a character. Returns its bytes; for bytes that are not UTF-8, *point is -1 and the return value the length of
 * the part that Python's decoder replaces by one U+FFFD; -2 where the text ends inside a character. */
int64_t decode_one(const uint8_t *bytes, int64_t size, int32_t *point) {
    uint8_t first = bytes[0], low = 0x80, high = 0xbf;
    int need = first < 0x80 ? 0 : first < 0xc2 ? -1 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : -1;
    *point = need < 0 ? -1 : need == 0 ? first : first & (0x3f >> need);
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
    for (int i = 1; i <= need; i++) {
        if (i >= size) {
            *point = -2;
            return size;
        }
        if (bytes[i] < low || bytes[i] > high) {
            *point = -1;
            return i;
        }
        *point = *point << 6 | (bytes[i] & 0x3f);
        low = 0x80;
        high = 0xbf;
    }
    return need < 0 ? 1 : need + 1;
}

/* Copies the complete characters to `out` and returns their bytes; *pending receives the length of an unfinished
 * character at the end, which is copied behind them. */
int64_t complete_bytes(const uint8_t *bytes, int64_t size, uint8_t *out, int64_t *pending) {
    int64_t written = 0;
    *pending = 0;
    for (int64_t at = 0, used; at < size; at += used) {
        int32_t point;
        used = decode_one(bytes + at, size - at, &point);
        if (point == -1) continue;
        memmove(out + written, bytes + at, (size_t)used);
        if (point == -2)
            *pending = used;
        else
            written += used;
    }
    return written;
}

void to_points(const uint8_t *bytes, int64_t size, Numbers *points) {
    points->count = 0;
    for (int64_t at = 0; at < size;) {
        int32_t point;
        at += decode_one(bytes + at, size - at, &point);
        push(points, point < 0 ? 0xfffd : point);
    }
}

int64_t range_of(const int32_t *ranges, int64_t count, int32_t number) {
    int64_t low = 0, high = count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (ranges[2 * middle] <= number)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static int class_of(const Bot *bot, int32_t point) { return bot->ranges[2 * range_of(bot->ranges, bot->range_count, point) + 1]; }

/* End of the piece that begins at `at`. */
static int64_t piece_end(const Bot *bot, const Numbers *text, int64_t at) {
    int kind = class_of(bot, text->data[at]), run = 0;
    int64_t from = at;
    if (kind & HAN)
        run = HAN;
    else if (kind & LETTER)
        run = LETTER;
    else if (text->data[at] == ' ' && at + 1 < text->count) {
        int next = class_of(bot, text->data[at + 1]);
        run = next & LETTER ? LETTER : next & OTHER ? OTHER : SPACE;
        from = run == SPACE ? at : at + 1;
    } else if (kind & NUMBER)
        return at + 1;
    else
        run = kind & OTHER ? OTHER : SPACE;
    while (from < text->count && class_of(bot, text->data[from]) & run) from++;
    return from > at ? from : at + 1;
}

static int32_t id_of_character(const Bot *bot, int32_t point) {
    int64_t low = 0, high = bot->character_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (bot->character_ids[2 * middle] < point)
            low = middle + 1;
        else
            high = middle;
    }
    return low < bot->character_count && bot->character_ids[2 * low] == point ? bot->character_ids[2 * low + 1] : -1;
}

static void push_character(const Bot *bot, int32_t c, Numbers *ids) {
    int32_t id = id_of_character(bot, c);
    if (id >= 0) {
        push(ids, id);
        return;
    }
    int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    push(ids, bot->byte_ids[more == 0 ? c : (0xff00 >> (more + 1) & 0xff) | c >> (6 * more)]);
    while (more--) push(ids, bot->byte_ids[0x80 | (c >> (6 * more) & 0x3f)]);
}

static const Merge *merge_of(const Bot *bot, int32_t first, int32_t second) {
    uint64_t key = ((uint64_t)first << 32 | (uint32_t)second) + 1;
    for (uint64_t slot = key * 0x9e3779b97f4a7c15u >> 20;; slot++) {
        const Merge *merge = bot->merges + (slot & bot->merge_mask);
        if (merge->key == key) return merge;
        if (!merge->key) return NULL;
    }
}

static int32_t rank_of(const Bot *bot, int32_t first, int32_t second) {
    const Merge *merge = merge_of(bot, first, second);
    return merge ? merge->rank : INT32_MAX;
}

/* Merges the ids from `begin` on: always the pair of the lowest rank, leftmost first. All pairs of one rank are merged in
 * one pass, which ends early where a merge makes a pair of a lower rank. */
static void merge_piece(const Bot *bot, Numbers *ids, int64_t begin) {
    for (;;) {
        int32_t best = INT32_MAX, *data = ids->data;
        for (int64_t i = begin; i + 1 < ids->count; i++) {
            int32_t rank = rank_of(bot, data[i], data[i + 1]);
            best = rank < best ? rank : best;
        }
        if (best == INT32_MAX) return;
        int64_t kept = begin;
        int ended = 0;
        for (int64_t i = begin; i < ids->count; i++) {
            const Merge *merge = i + 1 < ids->count && !ended ? merge_of(bot, data[i], data[i + 1]) : NULL;
            int merges = merge && merge->rank == best;
            data[kept++] = merges ? merge->made : data[i];
            i += merges;
            ended |= merges && ((kept - 2 >= begin && rank_of(bot, data[kept - 2], data[kept - 1]) < best) ||
                                (i + 1 < ids->count && rank_of(bot, data[kept - 1], data[i + 1]) < best));
        }
        ids->count = kept;
    }
}

/* Appends the ids of a text. */
void encode(const Bot *bot, const Numbers *points, Numbers *ids) {
    for (int64_t at = 0, end; at < points->count && !ids->failed; at = end) {
        int64_t begin = ids->count;
        end = piece_end(bot, points, at);
        for (int64_t i = at; i < end; i++) push_character(bot, points->data[i], ids);
        if (!ids->failed) merge_piece(bot, ids, begin);
    }
    ids->failed |= points->failed;
}

int64_t xl_encode(const Bot *bot, const char *text, int64_t bytes, int32_t *ids, int64_t room) {
    Numbers points = {0}, made = {0};
    to_points((const uint8_t *)text, bytes, &points);
    clean_points(bot, &points);
    encode(bot, &points, &made);
    int64_t count = made.failed ? -1 : made.count;
    for (int64_t i = 0; i < count && i < room; i++) ids[i] = made.data[i];
    free(points.data);
    free(made.data);
    return count;
}
