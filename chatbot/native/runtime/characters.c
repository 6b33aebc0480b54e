/* Characters of a text: the form in which chatbot/chat/turns.py reads a turn, and chatbot/decoding/rules/readable.py. The
 * tables are data of the file, written by chatbot/checkpoint/export/turns.py. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weights.h"

enum { READABLE = 1, WHITE = 2, INVISIBLE = 4, EMOJI = 8, KEYCAP = 16, CJK = 32, BLANK = 64 };
enum { MAX_DESCRIPTION = 64, MAX_DESCRIPTION_DEPTH = 16 };
enum { JOINER = 0x200d, AS_EMOJI = 0xfe0f };

static const int32_t *read_points(Reader *reader, int64_t *count) {
    const uint8_t *bytes = read_bytes(reader, count);
    *count /= 4;
    return (const int32_t *)bytes;
}

static int are_points(const int32_t *points, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (points[i] < 0 || points[i] > 0x10ffff) return 0;
    return 1;
}

static void read_stage(Reader *reader, Stage *stage) {
    int64_t pool;
    stage->spares_descriptions = read_number(reader) != 0;
    stage->index = read_points(reader, &stage->count);
    stage->points = read_points(reader, &pool);
    stage->count /= 2;
    reader->failed |= !are_points(stage->points, pool);
    for (int64_t i = 0; i < stage->count; i++) {
        int64_t start = stage->index[2 * i], length = stage->index[2 * i + 1];
        reader->failed |= start < 0 || length < 1 || start + 2 * length > pool;
    }
}

/* Whether bytes end inside of the first bytes of a character that can become a readable one. */
static int begins_readable(const Characters *c, const uint8_t *bytes, int64_t size) {
    int need = bytes[0] < 0xe0 ? 2 : bytes[0] < 0xf0 ? 3 : 4;
    int32_t smallest = need == 2 ? 0x80 : need == 3 ? 0x800 : 0x10000, first = bytes[0] & (0xff >> (need + 1)), last = first;
    for (int64_t i = 1; i < need; i++) {
        first = first << 6 | (i < size ? bytes[i] & 0x3f : 0);
        last = last << 6 | (i < size ? bytes[i] & 0x3f : 0x3f);
    }
    first = first < smallest ? smallest : first;
    for (int64_t i = range_of(c->kinds, c->kind_count, first); i < c->kind_count && c->kinds[2 * i] <= last; i++)
        if (c->kinds[2 * i + 1] & READABLE) return 1;
    return 0;
}

static int kind_of(const Characters *c, int32_t point) {
    return c->kinds[2 * range_of(c->kinds, c->kind_count, point) + 1];
}

/* Whether bytes are readable characters, and perhaps the beginning of another one. */
static int is_readable(const Characters *c, const uint8_t *bytes, int64_t size) {
    for (int64_t at = 0, used; at < size; at += used) {
        int32_t point;
        used = decode_one(bytes + at, size - at, &point);
        if (point == -2) return begins_readable(c, bytes + at, size - at);
        if (point == -1 || !(kind_of(c, point) & READABLE)) return 0;
    }
    return 1;
}

int load_characters(Bot *bot, const uint8_t *bytes, int64_t size) {
    Reader reader = {bytes, bytes + size, 0};
    Characters *c = &bot->characters;
    int64_t stages;
    c->kinds = read_points(&reader, &c->kind_count);
    c->kind_count /= 2;
    c->zhu = (int32_t)read_number(&reader);
    c->particle = (int32_t)read_number(&reader);
    c->zhu_after = read_points(&reader, &c->zhu_after_count);
    c->zhu_before = read_points(&reader, &c->zhu_before_count);
    stages = read_number(&reader);
    reader.failed |= stages < 1 || stages > MAX_STAGES || c->kind_count < 1 || c->kinds[0] != 0 || !are_points(&c->particle, 1);
    if (reader.failed) return 1;
    for (c->stage_count = 0; c->stage_count < stages; c->stage_count++) read_stage(&reader, c->stages + c->stage_count);
    c->unreadable = calloc((size_t)bot->vocabulary, 1);
    if (reader.failed || !c->unreadable) return 1;
    for (int64_t v = 0; v < bot->vocabulary; v++)
        c->unreadable[v] = !is_readable(c, bot->pieces + bot->offsets[v], bot->offsets[v + 1] - bot->offsets[v]);
    return 0;
}

/* Sets the logits of tokens that would make the reply unreadable to -inf. */
void forbid_unreadable(const Bot *bot, const int32_t *ids, int64_t count, float *logits) {
    const Characters *c = &bot->characters;
    uint8_t tail[3], joined[3 + MAX_PIECE];
    int64_t size = 0, pending;
    for (int64_t i = count - 1; i >= 0 && size < 3; i--)
        for (int64_t at = bot->offsets[ids[i] + 1]; at > bot->offsets[ids[i]] && size < 3;) tail[2 - size++] = bot->pieces[--at];
    size = complete_bytes(tail + 3 - size, size, joined, &pending);
    memmove(joined, joined + size, (size_t)pending);
    for (int64_t v = 0; v < bot->vocabulary; v++) {
        const uint8_t *piece = bot->pieces + bot->offsets[v];
        int64_t length = bot->offsets[v + 1] - bot->offsets[v];
        int forbidden = c->unreadable[v];
        if (pending && length) {
            forbidden = (piece[0] & 0xc0) != 0x80 || length > MAX_PIECE;
            if (!forbidden) {
                memcpy(joined + pending, piece, (size_t)length);
                forbidden = !is_readable(c, joined, pending + length);
            }
        }
        if (forbidden) logits[v] = -INFINITY;
    }
}

/* control_characters: white space of any kind becomes a space; invisible characters are removed, again and again. */
static void control_characters(const Characters *c, Numbers *points) {
    int32_t *data = points->data;
    int64_t kept = -1;
    for (int64_t i = 0; i < points->count; i++)
        if (kind_of(c, data[i]) & WHITE) data[i] = ' ';
    while (kept != points->count) {
        int before = 0; /* kind of the character before, removed or not */
        int32_t last = 0;
        if (kept >= 0) points->count = kept;
        kept = 0;
        for (int64_t i = 0; i < points->count; i++) {
            int32_t point = data[i];
            int kind = kind_of(c, point), removed = kind & INVISIBLE;
            if (point == JOINER)
                removed = !(before & EMOJI || last == AS_EMOJI) || i + 1 == points->count || !(kind_of(c, data[i + 1]) & EMOJI);
            if (point == AS_EMOJI) removed = !(before & (EMOJI | KEYCAP));
            if (!removed) data[kept++] = point;
            before = kind;
            last = point;
        }
    }
}

/* Length of the description of a character that begins at a text, or 0; OpenCC's UTF8Util.hpp bounds depth and length. */
static int64_t description(const int32_t *text, int64_t left, int depth, int *points) {
    if (left < 1 || depth == 0 || *points == MAX_DESCRIPTION) return 0;
    ++*points;
    int parts = *text == 0x2ff2 || *text == 0x2ff3 ? 3 : *text == 0x2ffe || *text == 0x2fff ? 1 : *text >= 0x2ff0 && *text < 0x2ffe ? 2 : 0;
    int64_t size = 1;
    while (parts--) {
        int64_t part = description(text + size, left - size, depth - 1, points);
        if (!part) return 0;
        size += part;
    }
    return size;
}

/* Replaces the longest keys that begin at a place, from left to right. */
static void replace(const Stage *stage, Numbers *points) {
    for (int64_t at = 0, used; at < points->count; at += used) {
        int32_t *text = points->data + at;
        int64_t low = 0, high = stage->count;
        int described = 0;
        used = stage->spares_descriptions ? description(text, points->count - at, MAX_DESCRIPTION_DEPTH, &described) : 0;
        if (used > 1) continue;
        while (low < high) {
            int64_t middle = (low + high) / 2;
            if (stage->points[stage->index[2 * middle]] < *text)
                low = middle + 1;
            else
                high = middle;
        }
        used = 1;
        for (; low < stage->count && stage->points[stage->index[2 * low]] == *text; low++) {
            const int32_t *key = stage->points + stage->index[2 * low];
            int64_t length = stage->index[2 * low + 1];
            size_t bytes = (size_t)length * sizeof *key;
            if (length > points->count - at || memcmp(text, key, bytes)) continue;
            memcpy(text, key + length, bytes);
            used = length;
            break;
        }
    }
}

/* The particle 著 becomes 着, other than in words like 著名 and 原著. */
static void replace_particle(const Characters *c, Numbers *points) {
    int32_t last = -1;
    for (int64_t at = 0; at < points->count; at++) {
        int32_t *text = points->data + at, point = *text;
        int spared = point != c->zhu;
        for (int64_t i = 0; i < c->zhu_after_count && !spared; i++) spared = last == c->zhu_after[i];
        for (int64_t i = 0; i < c->zhu_before_count && !spared;) { /* texts with a 0 after each */
            int64_t size = 0;
            while (i + size < c->zhu_before_count && c->zhu_before[i + size]) size++;
            spared = at + size < points->count && !memcmp(text + 1, c->zhu_before + i, (size_t)size * sizeof *text);
            i += size + 1;
        }
        if (!spared) *text = c->particle;
        last = point;
    }
}

/* clean_turn: trims, and removes the runs of spaces that touch a CJK character. */
static void join_spaces(const Characters *c, Numbers *points) {
    int32_t *data = points->data;
    int64_t begin = 0, end = points->count, kept = 0;
    while (begin < end && kind_of(c, data[begin]) & BLANK) begin++;
    while (end > begin && kind_of(c, data[end - 1]) & BLANK) end--;
    for (int64_t at = begin; at < end;) {
        int64_t run = at;
        while (run < end && data[run] == ' ') run++;
        int touches = (at > begin && kind_of(c, data[at - 1]) & CJK) || (run < end && kind_of(c, data[run]) & CJK);
        while (at < run) {
            if (!touches) data[kept++] = ' ';
            at++;
        }
        if (at < end) data[kept++] = data[at++];
    }
    points->count = kept;
}

/* TurnReader.text: a turn as the model reads it. */
void clean_points(const Bot *bot, Numbers *points) {
    const Characters *c = &bot->characters;
    control_characters(c, points);
    replace(c->stages, points); /* full-width letters */
    join_spaces(c, points);
    for (int64_t i = 1; i < c->stage_count; i++) replace(c->stages + i, points);
    replace_particle(c, points);
}

/* Moves the bounds of a valid text to those of its str.strip(). */
void trim(const Bot *bot, const uint8_t *text, int64_t *from, int64_t *size) {
    int64_t begin = 0, end = 0;
    int started = 0;
    for (int64_t at = 0; at < *size;) {
        int32_t point;
        int64_t used = decode_one(text + at, *size - at, &point);
        if (!(kind_of(&bot->characters, point) & BLANK)) {
            if (!started) begin = at;
            started = 1;
            end = at + used;
        }
        at += used;
    }
    *from = begin;
    *size = end - begin;
}
