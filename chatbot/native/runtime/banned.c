/* Banned words, as chatbot/decoding/rules/banned_words.py: tokens that would complete a word are forbidden, unless the
 * reply ends with a whole exception. The file holds all spellings of the words in lower case, one a line, exceptions
 * with a `!`. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weights.h"

/* Limits of the words in all spellings: four for each word of MAX_WORDS, MAX_EXCEPTIONS and MAX_WORD_CHARACTERS in
 * chatbot/decoding/rules/token_lists.py, at most 6 bytes for a character. */
enum { MAX_WORDS = 80000, MAX_EXCEPTIONS = 2000, MAX_WORD = 600, UNFINISHED = 8 };

static uint8_t lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }

static int64_t piece_of(const Bot *bot, int64_t token, uint8_t *out, int64_t room) {
    int64_t size = bot->offsets[token + 1] - bot->offsets[token];
    size = size < room ? size : room;
    for (int64_t i = 0; i < size; i++) out[i] = lower(bot->pieces[bot->offsets[token] + i]);
    return size;
}

static int compare(const uint8_t *a, int64_t a_size, const uint8_t *b, int64_t b_size) {
    int order = memcmp(a, b, (size_t)(a_size < b_size ? a_size : b_size));
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

static int begins_with(const uint8_t *text, int64_t size, const uint8_t *start, int64_t length) {
    return size >= length && !memcmp(text, start, (size_t)length);
}

static void sift(Word *data, int64_t at, int64_t count) {
    Word moved = data[at];
    for (int64_t child = 2 * at + 1; child < count; at = child, child = 2 * at + 1) {
        child += child + 1 < count && compare(data[child].bytes, data[child].size, data[child + 1].bytes, data[child + 1].size) < 0;
        if (compare(moved.bytes, moved.size, data[child].bytes, data[child].size) >= 0) break;
        data[at] = data[child];
    }
    data[at] = moved;
}

/* Heapsort: qsort of some C libraries takes quadratic time for an order that was chosen against it. */
static void sort(Words *words) {
    for (int64_t at = words->count / 2; at-- > 0;) sift(words->data, at, words->count);
    for (int64_t end = words->count; end-- > 1;) {
        Word last = words->data[end];
        words->data[end] = words->data[0];
        words->data[0] = last;
        sift(words->data, 0, end);
    }
}

/* The first index, `from` or above, of a sorted list whose word does not come before a text. */
static int64_t lower_bound(const Words *words, const uint8_t *text, int64_t size, int64_t from) {
    int64_t low = from, high = words->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (compare(words->data[middle].bytes, words->data[middle].size, text, size) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The index of a text in a sorted list, or -1. */
static int64_t index_of(const Words *words, const uint8_t *text, int64_t size) {
    int64_t i = lower_bound(words, text, size, 0);
    return i < words->count && !compare(words->data[i].bytes, words->data[i].size, text, size) ? i : -1;
}

/* Whether a text contains one of the words, of which none begins with another: at most one of them begins the rest of the
 * text, and it is the last one that does not come after this rest. */
static int contains(const Words *words, const uint8_t *text, int64_t size) {
    for (int64_t at = 0; at < size; at++) {
        int64_t i = lower_bound(words, text + at, size - at, 0);
        for (int64_t k = i; k >= i - 1; k--)
            if (k >= 0 && k < words->count && begins_with(text + at, size - at, words->data[k].bytes, words->data[k].size)) return 1;
    }
    return 0;
}

/* Marks the tokens that contain one of the words. */
static void mark_containing(const Words *words, Words *shortest, const Words *tokens, uint8_t *marks) {
    shortest->count = 0;
    for (int64_t w = 0; w < words->count; w++) {
        const Word *word = words->data + w, *last = shortest->count ? shortest->data + shortest->count - 1 : NULL;
        if (!last || !begins_with(word->bytes, word->size, last->bytes, last->size)) shortest->data[shortest->count++] = *word;
    }
    for (int64_t i = 0; i < tokens->count && shortest->count; i++)
        if (contains(shortest, tokens->data[i].bytes, tokens->data[i].size)) marks[tokens->data[i].token] = 1;
}

static int read_words(Banned *b, const uint8_t *text, int64_t size) {
    for (int64_t at = 0; at < size;) {
        const uint8_t *stop = memchr(text + at, '\n', (size_t)(size - at));
        int64_t end = stop ? stop - text : size;
        int exception = text[at] == '!' && end - at > 1;
        Word word = {text + at + exception, end - at - exception, 0};
        if (word.size > 0 && stop) {
            Words *words = exception ? &b->exceptions : &b->words;
            if (words->count == (exception ? MAX_EXCEPTIONS : MAX_WORDS) || word.size > MAX_WORD) return 0;
            words->data[words->count++] = word;
            b->longest = word.size > b->longest ? word.size : b->longest;
        }
        at = end + 1;
    }
    return 1;
}

/* Moves the words with which an exception ends to the guarded words. */
static void guard_words(Banned *b) {
    for (int64_t e = 0; e < b->exceptions.count; e++) {
        const Word *exception = b->exceptions.data + e;
        for (int64_t at = 1; at < exception->size; at++) {
            int64_t i = index_of(&b->words, exception->bytes + at, exception->size - at);
            if (i >= 0) b->words.data[i].token = 1;
        }
    }
    int64_t count = b->words.count;
    b->words.count = 0;
    for (int64_t w = 0; w < count; w++) {
        Words *words = b->words.data[w].token ? &b->guarded : &b->words;
        words->data[words->count++] = b->words.data[w];
    }
}

static void unite_equal(Words *words) {
    int64_t count = 0;
    for (int64_t w = 0; w < words->count; w++)
        if (!count || compare(words->data[w].bytes, words->data[w].size, words->data[count - 1].bytes, words->data[count - 1].size))
            words->data[count++] = words->data[w];
    words->count = count;
}

const char *load_banned(Bot *bot, const uint8_t *text, int64_t size) {
    Banned *b = &bot->banned;
    if (!size) return NULL;
    int64_t V = bot->vocabulary, piece_bytes = bot->offsets[V], lines = 1;
    for (int64_t i = 0; i < size && lines < MAX_WORDS; i++) lines += text[i] == '\n';
    b->words.data = calloc((size_t)lines, sizeof(Word));
    b->guarded.data = calloc((size_t)lines, sizeof(Word));
    b->exceptions.data = calloc((size_t)lines, sizeof(Word));
    b->tokens.data = calloc((size_t)V, sizeof(Word));
    b->always = calloc((size_t)V, 1);
    b->inside = calloc((size_t)V, 1);
    b->lowered = calloc((size_t)piece_bytes + 1, 1);
    Words shortest = {calloc((size_t)lines, sizeof(Word)), 0};
    const char *fault = NULL;
    if (!b->words.data || !b->guarded.data || !b->exceptions.data || !b->tokens.data || !b->always || !b->inside || !b->lowered ||
        !shortest.data) {
        fault = "Memory is short.";
    } else if (!read_words(b, text, size)) {
        fault = "The weights file has too many or too long banned words. Export it again with fewer or shorter ones.";
    } else {
        sort(&b->words);
        sort(&b->exceptions);
        unite_equal(&b->words);
        guard_words(b);
        for (int64_t i = 0; i < piece_bytes; i++) b->lowered[i] = lower(bot->pieces[i]);
        for (int64_t v = 0; v < V; v++)
            b->tokens.data[v] = (Word){b->lowered + bot->offsets[v], bot->offsets[v + 1] - bot->offsets[v], (int32_t)v};
        b->tokens.count = V;
        sort(&b->tokens);
        mark_containing(&b->words, &shortest, &b->tokens, b->always);
        mark_containing(&b->guarded, &shortest, &b->tokens, b->inside);
    }
    free(shortest.data);
    return fault;
}

void free_banned(Banned *banned) {
    free(banned->words.data);
    free(banned->guarded.data);
    free(banned->exceptions.data);
    free(banned->tokens.data);
    free(banned->always);
    free(banned->inside);
    free(banned->lowered);
}

/* Whether a word with exceptions ends after the first `shown` bytes of the text and outside of every exception. */
static int is_harmful(const Banned *b, uint8_t *text, int64_t size, int64_t shown) {
    int64_t pending;
    size = complete_bytes(text, size, text, &pending);
    for (int64_t end = shown + 1; end <= size; end++)
        for (int64_t length = end < b->longest ? end : b->longest; length > 0; length--) {
            if (index_of(&b->guarded, text + end - length, length) >= 0) return 1;
            if (index_of(&b->exceptions, text + end - length, length) >= 0) break; /* shorter words are inside this exception */
        }
    return 0;
}

/* Marks the tokens that begin with the rest of a word whose beginning is at the end of a tail. The rests ascend, so the
 * tokens of a rest follow those of the rests before, or are among them. */
static void mark_completing(const Banned *b, const Words *words, const uint8_t *tail, int64_t size, uint8_t *marks) {
    for (int64_t cut = 1; cut < b->longest && cut <= size; cut++) {
        const uint8_t *start = tail + size - cut;
        int64_t t = 0;
        for (int64_t w = lower_bound(words, start, cut, 0); w < words->count && t < b->tokens.count; w++) {
            const Word *word = words->data + w;
            if (!begins_with(word->bytes, word->size, start, cut)) break;
            if (word->size == cut) continue;
            const uint8_t *rest = word->bytes + cut;
            t = lower_bound(&b->tokens, rest, word->size - cut, t);
            for (; t < b->tokens.count && begins_with(b->tokens.data[t].bytes, b->tokens.data[t].size, rest, word->size - cut); t++)
                marks[b->tokens.data[t].token] = 1;
        }
    }
}

/* Sets the logits of the tokens that would complete a word after a reply to -inf. */
void ban(const Bot *bot, const int32_t *ids, int64_t count, float *logits) {
    const Banned *b = &bot->banned;
    int64_t most = b->longest - 1 + UNFINISHED, size = 0, from = count, pending;
    if (!b->words.count && !b->guarded.count) return;
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
    for (int64_t tail = shown; tail <= shown + pending; tail += pending ? pending : 1) {
        mark_completing(b, &b->words, text, tail, completing);
        mark_completing(b, &b->guarded, text, tail, guarded);
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
