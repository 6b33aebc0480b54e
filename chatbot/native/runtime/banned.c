/* Banned words, as chatbot/decoding/rules/banned_words.py: tokens that would complete a word are forbidden, unless the
 * reply ends with a whole exception. The file holds all spellings of the words in lower case, one a line, exceptions
 * with a `!`. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weights.h"

enum { UNFINISHED = 8 };

static uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

static int64_t piece_of(const Bot *bot, int64_t token, uint8_t *out, int64_t room) {
    int64_t size = bot->offsets[token + 1] - bot->offsets[token];
    size = size < room ? size : room;
    for (int64_t i = 0; i < size; i++) out[i] = lower(bot->pieces[bot->offsets[token] + i]);
    return size;
}

static int64_t find(const uint8_t *text, int64_t size, const uint8_t *word, int64_t length, int64_t from) {
    for (int64_t at = from; at + length <= size; at++)
        if (!memcmp(text + at, word, (size_t)length)) return at;
    return -1;
}

static int contains(const uint8_t *text, int64_t size, const Word *word) {
    return find(text, size, word->bytes, word->size, 0) >= 0;
}

static int ends_with(const uint8_t *text, int64_t size, const Word *word) {
    return size >= word->size && !memcmp(text + size - word->size, word->bytes, (size_t)word->size);
}

int load_banned(Bot *bot, const uint8_t *text, int64_t size) {
    Banned *b = &bot->banned;
    int64_t lines = 0;
    for (int64_t i = 0; i < size; i++) lines += text[i] == '\n';
    b->words = calloc((size_t)lines + 1, sizeof *b->words);
    b->exceptions = calloc((size_t)lines + 1, sizeof *b->exceptions);
    b->always = calloc((size_t)bot->vocabulary, 1);
    b->inside = calloc((size_t)bot->vocabulary, 1);
    if (!b->words || !b->exceptions || !b->always || !b->inside) return 1;
    for (int64_t at = 0; at < size;) {
        const uint8_t *stop = memchr(text + at, '\n', (size_t)(size - at));
        int64_t end = stop ? stop - text : size;
        int exception = text[at] == '!' && end - at > 1;
        Word word = {text + at + exception, end - at - exception, 0};
        if (word.size > 0 && stop) {
            if (exception)
                b->exceptions[b->exception_count++] = word;
            else
                b->words[b->count++] = word;
            b->longest = word.size > b->longest ? word.size : b->longest;
        }
        at = end + 1;
    }
    for (int64_t w = 0; w < b->count; w++)
        for (int64_t e = 0; e < b->exception_count; e++)
            b->words[w].guarded |= b->exceptions[e].size > b->words[w].size &&
                                   ends_with(b->exceptions[e].bytes, b->exceptions[e].size, b->words + w);
    uint8_t piece[MAX_PIECE];
    for (int64_t token = 0; token < bot->vocabulary && b->count; token++) {
        int64_t length = piece_of(bot, token, piece, MAX_PIECE);
        for (int64_t w = 0; w < b->count; w++)
            if (contains(piece, length, b->words + w)) (b->words[w].guarded ? b->inside : b->always)[token] = 1;
    }
    return 0;
}

void free_banned(Banned *banned) {
    free(banned->words);
    free(banned->exceptions);
    free(banned->always);
    free(banned->inside);
}

/* Whether a banned word ends after the first `shown` bytes of the text and outside of every exception. */
static int is_harmful(const Banned *b, uint8_t *text, int64_t size, int64_t shown) {
    int64_t pending;
    size = complete_bytes(text, size, text, &pending);
    for (int64_t w = 0; w < b->count; w++) {
        const Word *word = b->words + w;
        if (!word->guarded) continue;
        int64_t from = shown - word->size + 1;
        for (int64_t at = find(text, size, word->bytes, word->size, from < 0 ? 0 : from); at >= 0;
             at = find(text, size, word->bytes, word->size, at + 1)) {
            int spared = 0;
            for (int64_t e = 0; e < b->exception_count && !spared; e++)
                spared = b->exceptions[e].size > word->size && ends_with(b->exceptions[e].bytes, b->exceptions[e].size, word) &&
                         ends_with(text, at + word->size, b->exceptions + e);
            if (!spared) return 1;
        }
    }
    return 0;
}

/* Marks the tokens that begin with the rest of a word whose beginning is at the end of a tail. */
static void mark_completing(const Bot *bot, const uint8_t *tail, int64_t size, const Word *word, uint8_t *marks) {
    for (int64_t cut = 1; cut < word->size && cut <= size; cut++) {
        if (memcmp(tail + size - cut, word->bytes, (size_t)cut)) continue;
        int64_t rest = word->size - cut;
        for (int64_t token = 0; token < bot->vocabulary; token++) {
            const uint8_t *piece = bot->pieces + bot->offsets[token];
            int64_t i = 0, length = bot->offsets[token + 1] - bot->offsets[token];
            while (i < rest && i < length && lower(piece[i]) == word->bytes[cut + i]) i++;
            marks[token] |= i == rest;
        }
    }
}

/* Sets the logits of the tokens that would complete a word after a reply to -inf. */
void ban(const Bot *bot, const int32_t *ids, int64_t count, float *logits) {
    const Banned *b = &bot->banned;
    int64_t most = b->longest - 1 + UNFINISHED, size = 0, from = count, pending;
    if (!b->count) return;
    while (from > 0 && size < most) {
        from--;
        size += bot->offsets[ids[from] + 1] - bot->offsets[ids[from]];
    }
    int64_t room = size + MAX_PIECE;
    uint8_t *memory = calloc((size_t)(2 * room + 2 * bot->vocabulary), 1);
    if (!memory) { /* without memory for the check, only the end is safe */
        for (int64_t v = 0; v < bot->vocabulary; v++)
            if (v != bot->end) logits[v] = -INFINITY;
        return;
    }
    uint8_t *end = memory, *text = memory + room, *completing = memory + 2 * room, *guarded = completing + bot->vocabulary;
    size = 0;
    for (int64_t i = from; i < count; i++) size += piece_of(bot, ids[i], end + size, room - size);
    int64_t shown = complete_bytes(end, size, text, &pending);
    memcpy(guarded, b->inside, (size_t)bot->vocabulary);
    for (int64_t w = 0; w < b->count; w++) {
        uint8_t *marks = b->words[w].guarded ? guarded : completing;
        mark_completing(bot, text, shown, b->words + w, marks);
        if (pending) mark_completing(bot, text, shown + pending, b->words + w, marks);
    }
    for (int64_t token = 0; token < bot->vocabulary; token++) {
        int forbidden = b->always[token] || completing[token];
        if (!forbidden && guarded[token]) {
            memcpy(text, end, (size_t)size);
            forbidden = is_harmful(b, text, size + piece_of(bot, token, text + size, room - size), shown);
        }
        if (forbidden) logits[token] = -INFINITY;
    }
    free(memory);
}
