/* The fixed replies to people in need: chatbot/safety in C, over tables that chatbot/checkpoint/export/rules.py writes.
 * folding.py, phrases.py, classifier.py and rules.py describe what is done; the functions here have their names. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "weights.h"

enum { NONE, SPACE, CLAUSE, SENTENCE };
enum { AGAIN, MEANS, LEAVING, DISTRESS, BETTER, SHORT, ORDINARY, KINDS, CRISIS = KINDS, ASKING };
enum { CRISIS_LIST, CERTAIN_LIST, MEANS_LIST, LEAVING_LIST, DISTRESS_LIST, BETTER_LIST, WORDS_LIST, LISTS };
enum { GAP, LATIN_GAP, SPELLED_OUT, FILLER, REPEATED, MOST_WORD, SHORT_LETTERS, LONG_LETTERS, FEWEST_LETTERS, MOST_LETTERS, FEW_PARTS, SIDE_LETTERS, JOINED_MESSAGES, JOINED_CHARACTERS, TAIL_LETTERS, LIMITS };
enum { BITS = 20, BUCKETS = 1 << BITS, LONGEST_NGRAM = 4, MAX_DEPTH = 64 };
enum { QUESTION_CHARACTERS = 40 }; /* of a question of the bot that are checked with the answer, from its end */
enum { IDENTITY, SEPARATOR, SHIFTED, POOL, ALNUM = 256 }; /* how a range of characters is folded */

typedef struct {
    const int32_t *letters;
    int64_t size;
} Alternative;

typedef struct {
    Alternative *alternatives;
    int64_t count;
} Piece;

typedef struct {
    Piece *pieces;
    int64_t count;
} Part;

typedef struct {
    int harmless; /* 2: the classifier does not see its phrases either */
    int64_t phrases, *ends, parts; /* ends[i]: parts of the first i + 1 phrases */
    Part *part;
} Line;

typedef struct {
    Alternative skeleton, word;
} ListedWord;

typedef struct {
    Line *lines;
    ListedWord *words; /* sorted by their skeletons */
    int64_t count, word_count;
} Phrases;

typedef struct {
    const uint8_t *bytes;
    int64_t size;
} Text;

typedef struct {
    const int32_t *data;
    int64_t count;
} Letters;

struct Safety {
    const int32_t *fold, *pool; /* fold: (first character, kind, value) */
    int64_t fold_count, pool_count, limit[LIMITS];
    Letters strokes, speaking, symbols, symbol_digits;
    const int32_t *stands_for; /* [128]: the letter for an ASCII character in a Latin word */
    Phrases lists[LISTS];
    Text *replies[KINDS], crisis_reply, refusal;
    int64_t reply_count[KINDS], ordinary_messages, ordinary_letters;
    int refuses, has_classifier;
    double scale, bias, threshold, veto, per_doubling;
    const uint32_t *multipliers; /* [LONGEST_NGRAM, LONGEST_NGRAM] by size and place */
    const int8_t *weights;
    void **owned; /* memory to release */
    int64_t owned_count, owned_room;
};

typedef struct {
    const struct Safety *rules;
    Numbers text, places, breaks;
} Folded;

typedef struct {
    int32_t start, end;
} Span;

typedef struct {
    Span *data;
    int64_t count, room;
    int failed;
} Spans;

static void add(Spans *spans, Span span) {
    if (spans->count == spans->room && !spans->failed) {
        int64_t room = spans->room ? 2 * spans->room : 16;
        Span *data = realloc(spans->data, (size_t)room * sizeof *data);
        spans->failed = !data;
        if (data) spans->data = data, spans->room = room;
    }
    if (!spans->failed) spans->data[spans->count++] = span;
}

int64_t read_number(Reader *reader) {
    int32_t value = 0;
    if (reader->end - reader->at < 4)
        reader->failed = 1;
    else
        memcpy(&value, reader->at, 4), reader->at += 4;
    return value;
}

/* A length and so many bytes, padded to a multiple of four. */
const uint8_t *read_bytes(Reader *reader, int64_t *size) {
    const uint8_t *bytes = reader->at + 4;
    *size = read_number(reader);
    int64_t padded = (*size + 3) / 4 * 4;
    if (reader->failed || *size < 0 || padded > reader->end - reader->at) {
        reader->failed = 1;
        *size = 0;
        return reader->end;
    }
    reader->at += padded;
    return bytes;
}

static void *own(struct Safety *safety, int64_t count, size_t width, Reader *reader) {
    if (count < 0 || count > reader->end - reader->at) { /* each element takes at least one byte of the file */
        reader->failed = 1;
        return NULL;
    }
    void *memory = calloc((size_t)count + 1, width);
    if (safety->owned_count == safety->owned_room) {
        int64_t room = 2 * safety->owned_room + 64;
        void **owned = realloc(safety->owned, (size_t)room * sizeof *owned);
        if (owned) safety->owned = owned, safety->owned_room = room;
    }
    if (!memory || safety->owned_count == safety->owned_room) {
        free(memory);
        reader->failed = 1;
        return NULL;
    }
    return safety->owned[safety->owned_count++] = memory;
}

static void read_letters(Reader *reader, Alternative *letters) {
    int64_t size;
    letters->letters = (const int32_t *)read_bytes(reader, &size);
    letters->size = size / 4;
}

static void read_part(struct Safety *safety, Reader *reader, Part *part) {
    part->count = read_number(reader);
    part->pieces = own(safety, part->count, sizeof *part->pieces, reader);
    reader->failed |= part->count > MAX_DEPTH;
    for (int64_t p = 0; p < part->count && !reader->failed; p++) {
        Piece *piece = part->pieces + p;
        piece->count = read_number(reader);
        piece->alternatives = own(safety, piece->count, sizeof *piece->alternatives, reader);
        for (int64_t a = 0; a < piece->count && !reader->failed; a++) read_letters(reader, piece->alternatives + a);
    }
}

static void read_phrases(struct Safety *safety, Reader *reader, Phrases *list) {
    list->count = read_number(reader);
    list->lines = own(safety, list->count, sizeof *list->lines, reader);
    for (int64_t l = 0; l < list->count && !reader->failed; l++) {
        Line *line = list->lines + l;
        line->harmless = (int)read_number(reader);
        reader->failed |= line->harmless < 0 || line->harmless > 2;
        line->phrases = read_number(reader);
        line->parts = read_number(reader);
        line->ends = own(safety, line->phrases, sizeof *line->ends, reader);
        line->part = own(safety, line->parts, sizeof *line->part, reader);
        reader->failed |= line->phrases < 1;
        for (int64_t i = 0; i < line->phrases && !reader->failed; i++) {
            line->ends[i] = read_number(reader);
            reader->failed |= line->ends[i] <= (i ? line->ends[i - 1] : 0) || line->ends[i] > line->parts;
        }
        for (int64_t i = 0; i < line->parts && !reader->failed; i++) read_part(safety, reader, line->part + i);
    }
    if (reader->failed) return;
    list->word_count = read_number(reader);
    list->words = own(safety, list->word_count, sizeof *list->words, reader);
    for (int64_t i = 0; i < list->word_count && !reader->failed; i++) {
        read_letters(reader, &list->words[i].skeleton);
        read_letters(reader, &list->words[i].word);
        reader->failed |= list->words[i].word.size < 1;
    }
}

static double read_double(Reader *reader) {
    double value = 0;
    if (reader->end - reader->at < 8)
        reader->failed = 1;
    else
        memcpy(&value, reader->at, 8), reader->at += 8;
    return value;
}

void free_safety(struct Safety *safety) {
    if (!safety) return;
    for (int64_t i = 0; i < safety->owned_count; i++) free(safety->owned[i]);
    free(safety->owned);
    free(safety);
}

struct Safety *load_safety(const uint8_t *bytes, int64_t size) {
    struct Safety *s = calloc(1, sizeof *s);
    Reader reader = {bytes, bytes + size, 0};
    int64_t count;
    if (!s) return NULL;
    s->fold = (const int32_t *)read_bytes(&reader, &count);
    s->fold_count = count / 12;
    s->pool = (const int32_t *)read_bytes(&reader, &count);
    s->pool_count = count / 4;
    for (int64_t i = 0; i < s->fold_count; i++) {
        const int32_t *entry = s->fold + 3 * i;
        int kind = entry[1] & 255;
        if (kind >= POOL) reader.failed |= entry[2] < 0 || entry[2] > s->pool_count - (kind - POOL);
        if (kind == SEPARATOR) reader.failed |= entry[2] < 0 || entry[2] > SENTENCE;
    }
    reader.failed |= s->fold_count < 1 || s->fold[0] != 0;
    for (int i = 0; i < LIMITS; i++) {
        s->limit[i] = read_number(&reader);
        reader.failed |= s->limit[i] < 1 || s->limit[i] > 1 << 20;
    }
    reader.failed |= s->limit[LONG_LETTERS] < 2; /* windows advance by half of it */
    s->strokes.data = (const int32_t *)read_bytes(&reader, &count);
    s->strokes.count = count / 4;
    s->speaking.data = (const int32_t *)read_bytes(&reader, &count);
    s->speaking.count = count / 4;
    s->symbols.data = (const int32_t *)read_bytes(&reader, &count);
    s->symbols.count = count / 4;
    s->symbol_digits.data = (const int32_t *)read_bytes(&reader, &count);
    s->symbol_digits.count = count / 4;
    reader.failed |= s->symbols.count != s->symbol_digits.count;
    s->stands_for = (const int32_t *)read_bytes(&reader, &count);
    reader.failed |= count != 128 * 4;
    for (int i = 0; i < LISTS && !reader.failed; i++) read_phrases(s, &reader, s->lists + i);
    s->refuses = read_number(&reader) != 0;
    s->ordinary_messages = read_number(&reader);
    s->ordinary_letters = read_number(&reader);
    s->crisis_reply.bytes = read_bytes(&reader, &s->crisis_reply.size);
    s->refusal.bytes = read_bytes(&reader, &s->refusal.size);
    for (int kind = 0; kind < KINDS && !reader.failed; kind++) {
        s->reply_count[kind] = read_number(&reader);
        s->replies[kind] = own(s, s->reply_count[kind], sizeof(Text), &reader);
        reader.failed |= s->reply_count[kind] < 1;
        for (int64_t i = 0; i < s->reply_count[kind] && !reader.failed; i++)
            s->replies[kind][i].bytes = read_bytes(&reader, &s->replies[kind][i].size);
    }
    s->has_classifier = read_number(&reader) != 0;
    s->scale = read_double(&reader);
    s->bias = read_double(&reader);
    s->threshold = read_double(&reader);
    s->veto = read_double(&reader);
    s->per_doubling = read_double(&reader);
    s->multipliers = (const uint32_t *)read_bytes(&reader, &count);
    reader.failed |= count != LONGEST_NGRAM * LONGEST_NGRAM * 4;
    s->weights = (const int8_t *)read_bytes(&reader, &count);
    reader.failed |= s->has_classifier && count != BUCKETS;
    if (!reader.failed) return s;
    free_safety(s);
    return NULL;
}

static const int32_t *entry_of(const struct Safety *s, int32_t character) {
    int64_t low = 0, high = s->fold_count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (s->fold[3 * middle] <= character)
            low = middle;
        else
            high = middle;
    }
    return s->fold + 3 * low;
}

static int is_digit(int32_t c) { return c >= '0' && c <= '9'; }

static int hex_value(int32_t c) {
    if (is_digit(c)) return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Character `at` of a text, or 0 after its end. */
static int32_t character_at(const Numbers *text, int64_t at) { return at < text->count ? text->data[at] : 0; }

/* Reads at most `most` digits of a base at `*at`; returns whether there are at least `least`. */
static int read_code(const Numbers *text, int64_t *at, int base, int least, int most, int32_t *code) {
    int count = 0;
    for (*code = 0; count < most; count++, ++*at) {
        int value = hex_value(character_at(text, *at));
        if (value < 0 || value >= base) break;
        *code = *code * base + value;
    }
    return count >= least;
}

/* Reads the bytes of one character in UTF-8 that are written as %E6%AD%BB. */
static int read_percent_bytes(const Numbers *text, int64_t *at, int32_t *code) {
    static const int32_t least[] = {0, 0x80, 0x800, 0x10000};
    int32_t byte;
    int more = 0;
    ++*at;
    if (!read_code(text, at, 16, 2, 2, code)) return 0;
    if (*code >= 0x80) {
        more = *code >= 0xf0 ? 3 : *code >= 0xe0 ? 2 : 1;
        if (*code < 0xc0 || *code >= 0xf8) return 0;
        *code &= 0x3f >> more;
    }
    for (int i = 0; i < more; i++) {
        if (character_at(text, (*at)++) != '%' || !read_code(text, at, 16, 2, 2, &byte) || byte >> 6 != 2) return 0;
        *code = *code << 6 | (byte & 0x3f);
    }
    return *code >= least[more];
}

/* The index after the escape that begins at `at`, or 0 if none does; see unescaped in characters.py. */
static int64_t escape_end(const Numbers *text, int64_t at, int32_t *code) {
    int32_t first = text->data[at], next = character_at(text, at + 1);
    int64_t end = at + 2;
    if (first == '\\' && character_at(text, end) == '{' && ((next | 32) == 'u' || (next | 32) == 'x')) {
        end++;
        if (!read_code(text, &end, 16, 1, 6, code) || character_at(text, end++) != '}') return 0;
    } else if (first == '\\' && (next | 32) == 'u') {
        if (!read_code(text, &end, 16, 4, 4, code)) return 0;
    } else if (first == '&' && next == '#') {
        int is_hex = (character_at(text, end) | 32) == 'x';
        end += is_hex;
        if (!read_code(text, &end, is_hex ? 16 : 10, 1, is_hex ? 6 : 7, code)) return 0;
        end += character_at(text, end) == ';';
    } else if (first == '%') {
        end = at;
        if (!read_percent_bytes(text, &end, code)) return 0;
    } else
        return 0;
    return (*code >= 0xd800 && *code < 0xe000) || *code > 0x10ffff ? 0 : end;
}

static void fold_plain(const struct Safety *s, const Numbers *text, Folded *folded) {
    int32_t between = SENTENCE;
    folded->rules = s;
    for (int64_t place = 0; place < text->count; place++) {
        int32_t character = text->data[place];
        const int32_t *entry = entry_of(s, character);
        if (character == '.' && place > 0 && place < text->count - 1 && entry_of(s, text->data[place - 1])[1] & ALNUM &&
            entry_of(s, text->data[place + 1])[1] & ALNUM) {
            between = between > SPACE ? between : SPACE; /* s.u.i.c.i.d.e */
            continue;
        }
        int kind = entry[1] & 255, letters = kind >= POOL ? kind - POOL : kind != SEPARATOR;
        if (kind == SEPARATOR && entry[2] > between) between = entry[2];
        for (int i = 0; i < letters; i++) {
            push(&folded->text, kind == IDENTITY ? character : kind == SHIFTED ? character + entry[2] : s->pool[entry[2] + i]);
            push(&folded->places, (int32_t)place);
            push(&folded->breaks, between);
            between = NONE;
        }
    }
    push(&folded->breaks, SENTENCE);
}

static void fold(const struct Safety *s, const Numbers *text, Folded *folded) {
    Numbers plain = {0}, places = {0};
    int has_escape = 0;
    for (int64_t at = 0; at < text->count;) {
        int32_t code = 0;
        int64_t end = escape_end(text, at, &code);
        has_escape |= end > 0;
        push(&plain, end ? code : text->data[at]);
        push(&places, (int32_t)at);
        at = end ? end : at + 1;
    }
    int failed = plain.failed | places.failed;
    if (!failed) fold_plain(s, has_escape ? &plain : text, folded);
    for (int64_t i = 0; has_escape && !failed && i < folded->places.count; i++)
        folded->places.data[i] = places.data[folded->places.data[i]];
    folded->text.failed |= failed;
    free(plain.data);
    free(places.data);
}

static void free_folded(Folded *folded) {
    free(folded->text.data);
    free(folded->places.data);
    free(folded->breaks.data);
}

static int fold_failed(const Folded *f) { return f->text.failed || f->places.failed || f->breaks.failed; }

static int is_chinese(int32_t c) { return (c >= 0x3400 && c <= 0x9fff) || (c >= 0x20000 && c <= 0x3ffff); }

static int is_latin(int32_t c) { return c < 128; }

static int has_letter(const Letters *letters, int32_t c) {
    for (int64_t i = 0; i < letters->count; i++)
        if (letters->data[i] == c) return 1;
    return 0;
}

static int is_filler(const struct Safety *s, int32_t c) { return !is_chinese(c) || has_letter(&s->strokes, c); }

static int is_letter(int32_t c) { return c >= 'a' && c <= 'z'; }

/* Whether a character that is not folded is a Latin letter, perhaps a full-width one. */
static int is_alphabetic(int32_t c) { return is_letter(c | 32) || is_letter((c - 0xfee0) | 32); }

/* Whether a word has a letter and a digit next to each other, or a letter three times in a row. */
static int is_respelled(const int32_t *word, int64_t size) {
    for (int64_t i = 1; i < size; i++) {
        if ((is_letter(word[i]) && is_digit(word[i - 1])) || (is_digit(word[i]) && is_letter(word[i - 1]))) return 1;
        if (i > 1 && is_letter(word[i]) && word[i] == word[i - 1] && word[i] == word[i - 2]) return 1;
    }
    return 0;
}

static int by_letters(const Alternative *a, const int32_t *letters, int64_t size) {
    for (int64_t i = 0; i < a->size && i < size; i++)
        if (a->letters[i] != letters[i]) return a->letters[i] < letters[i] ? -1 : 1;
    return (a->size > size) - (a->size < size);
}

/* The listed word with the skeleton of a word, or NULL. */
static const Alternative *listed_word(const struct Safety *s, const Phrases *list, const int32_t *word, int64_t size) {
    int32_t skeleton[256];
    int64_t low = 0, high = list->word_count, length = 0;
    if (size > s->limit[MOST_WORD] || size > 256 || !is_respelled(word, size)) return NULL;
    for (int64_t i = 0; i < size; i++) {
        int32_t letter = s->stands_for[word[i] & 127];
        if (!length || letter != skeleton[length - 1]) skeleton[length++] = letter;
    }
    while (low < high) {
        int64_t middle = (low + high) / 2;
        int order = by_letters(&list->words[middle].skeleton, skeleton, length);
        if (!order) return &list->words[middle].word;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static void push_letter(Folded *to, int32_t letter, int32_t place, int32_t between) {
    push(&to->text, letter);
    push(&to->places, place);
    push(&to->breaks, between);
}

/* Folded._with_words: the text with listed words in place of those that are spelled otherwise. */
static int with_words(const Folded *from, const Phrases *list, Folded *to) {
    const int32_t *text = from->text.data, *places = from->places.data, *breaks = from->breaks.data;
    int64_t size = from->text.count, start = 0;
    int differs = 0;
    to->rules = from->rules;
    while (start < size) {
        int64_t end = start + 1;
        const Alternative *word = NULL;
        if (is_letter(text[start]) || is_digit(text[start])) {
            while (end < size && breaks[end] == NONE && (is_letter(text[end]) || is_digit(text[end]))) end++;
            word = listed_word(from->rules, list, text + start, end - start);
        }
        if (word && !by_letters(word, text + start, end - start)) word = NULL;
        for (int64_t i = 0; !word && i < end - start; i++) push_letter(to, text[start + i], places[start + i], breaks[start + i]);
        for (int64_t i = 0; word && i < word->size; i++) {
            int64_t at = i == word->size - 1 || i > end - start - 1 ? end - 1 : start + i;
            push_letter(to, word->letters[i], places[at], i ? NONE : breaks[start]);
        }
        differs |= word != NULL;
        start = end;
    }
    push(&to->breaks, breaks[size]);
    return differs;
}

/* Folded._condensed: the text without fillers between two Chinese characters, and with one letter for three or more. */
static void condense(const Folded *from, Folded *to) {
    const int32_t *text = from->text.data, *breaks = from->breaks.data;
    int64_t size = from->text.count, start = 0;
    int32_t between = NONE;
    Numbers once = {0}; /* indices */
    to->rules = from->rules;
    while (start < size) {
        int64_t end = start + 1;
        while (end < size && text[end] == text[start] && breaks[end] == NONE) end++;
        int64_t last = end - start < from->rules->limit[REPEATED] ? end : start + 1;
        for (int64_t i = start; i < last; i++) push(&once, (int32_t)i);
        start = end;
    }
    if (once.failed) {
        to->text.failed = 1;
        free(once.data);
        return;
    }
    int64_t count = once.count, next = 0;
    for (int64_t i = 0; i < count;) {
        int64_t end = i;
        while (end < count && is_filler(from->rules, text[once.data[end]])) end++;
        int inside = 0 < i && i < end && end < count && end - i <= from->rules->limit[FILLER] &&
                     is_chinese(text[once.data[i - 1]]) && is_chinese(text[once.data[end]]);
        for (; i <= end && i < count; i++) {
            if (inside && i < end) continue;
            for (int64_t at = once.data[i]; next <= at; next++) between = breaks[next] > between ? breaks[next] : between;
            push_letter(to, text[once.data[i]], from->places.data[once.data[i]], between);
            between = NONE;
        }
    }
    for (; next <= size; next++) between = breaks[next] > between ? breaks[next] : between;
    push(&to->breaks, between);
    free(once.data);
}

/* Folded.respelled: the text with listed words, without fillers and repetitions; returns whether it differs. */
static int respelled(const Folded *from, const Phrases *list, Folded *to) {
    Folded known = {0};
    int differs = with_words(from, list, &known);
    if (fold_failed(&known))
        to->text.failed = 1;
    else
        condense(&known, to);
    differs |= to->text.count != known.text.count;
    free_folded(&known);
    return differs;
}

/* Whether a span consists of whole words and clauses, and is not part of other words or across other clauses. */
static int is_apart(const Folded *f, Span span) {
    const int32_t *text = f->text.data, *breaks = f->breaks.data;
    int64_t start = span.start, end = span.end, size = f->text.count;
    int inner = 0, latin = 1;
    if (is_latin(text[start]) && start && breaks[start] == NONE && is_latin(text[start - 1])) return 0;
    if (is_latin(text[end - 1]) && end < size && breaks[end] == NONE && is_latin(text[end])) return 0;
    for (int64_t i = start; i < end; i++) {
        latin &= is_latin(text[i]);
        inner |= i > start && breaks[i] != NONE;
    }
    if (inner && end - start < f->rules->limit[SPELLED_OUT] && latin) return 0;
    for (int64_t place = start + 1; place < end; place++) {
        if (breaks[place] < CLAUSE) continue;
        int64_t before = place - 1, after = place + 1;
        while (before > 0 && breaks[before] < CLAUSE) before--;
        while (after < size && breaks[after] < CLAUSE) after++;
        if (before < start && after > end) return 0;
    }
    return 1;
}

typedef struct {
    const Folded *folded;
    const Part *part;
    int64_t start;
    int harmless;
    Spans *found;
} Search;

/* Whether a span does not cross the end of a clause, or ends with the next one; only this hides phrases. */
static int has_whole_clauses(const Folded *f, Span span) {
    for (int64_t i = span.start + 1; i < span.end; i++)
        if (f->breaks.data[i] >= CLAUSE) return f->breaks.data[span.end] >= CLAUSE;
    return 1;
}

/* Matches the pieces from `piece` on at `at`; ^ and $ match an edge. */
static void match(const Search *search, int64_t piece, int64_t at) {
    const Folded *f = search->folded;
    if (piece == search->part->count) {
        Span span = {(int32_t)search->start, (int32_t)at};
        if (at > search->start && is_apart(f, span) && (!search->harmless || has_whole_clauses(f, span))) add(search->found, span);
        return;
    }
    for (int64_t a = 0; a < search->part->pieces[piece].count; a++) {
        const Alternative *alternative = search->part->pieces[piece].alternatives + a;
        int64_t now = at, i = 0;
        for (; i < alternative->size; i++) {
            int32_t letter = alternative->letters[i];
            if (letter == '^' || letter == '$') {
                if (f->breaks.data[now] == NONE) break;
            } else if (now >= f->text.count || f->text.data[now++] != letter)
                break;
        }
        if (i == alternative->size) match(search, piece + 1, now);
    }
}

static int by_place(const void *a, const void *b) {
    const Span *x = a, *y = b;
    return x->start != y->start ? (x->start > y->start) - (x->start < y->start) : (x->end > y->end) - (x->end < y->end);
}

static void sort_spans(Spans *spans) {
    int64_t kept = 0, sorted = 1;
    while (sorted < spans->count && by_place(spans->data + sorted - 1, spans->data + sorted) <= 0) sorted++;
    if (sorted < spans->count) qsort(spans->data, (size_t)spans->count, sizeof *spans->data, by_place);
    for (int64_t i = 0; i < spans->count; i++)
        if (!kept || by_place(spans->data + i, spans->data + kept - 1)) spans->data[kept++] = spans->data[i];
    spans->count = kept;
}

enum { HASHES = 4096 };

/* Indices of the letters of a text, by the hash of the letter: hash h has order[begins[h]] to order[begins[h + 1] - 1]. */
typedef struct {
    const Folded *folded;
    int32_t begins[HASHES + 1], *order;
    int32_t *mark;                             /* scratch [letters + 1] of join; all 0 between its calls */
    int16_t first[HASHES]; /* hashes of the letters with which a part can begin, those in the text alone */
    uint64_t is_first[HASHES / 64];
} Index;

static int hash_of(int32_t letter) { return letter & (HASHES - 1); }

static void free_index(Index *index) {
    if (!index) return;
    free(index->order);
    free(index->mark);
    free(index);
}

/* Returns the index of a folded text, or NULL if memory is short. */
static Index *make_index(const Folded *f) {
    int64_t size = f->text.count;
    Index *index = calloc(1, sizeof *index);
    if (!index) return NULL;
    index->folded = f;
    index->order = malloc((size_t)(size + 1) * sizeof(int32_t));
    index->mark = calloc((size_t)size + 1, sizeof(int32_t));
    if (!index->order || !index->mark) return free_index(index), NULL;
    int32_t *begins = index->begins;
    for (int64_t i = 0; i < size; i++) begins[hash_of(f->text.data[i]) + 1]++;
    for (int h = 0; h < HASHES; h++) begins[h + 1] += begins[h];
    for (int64_t i = size; i-- > 0;) index->order[--begins[hash_of(f->text.data[i]) + 1]] = (int32_t)i;
    for (int h = 0; h < HASHES; h++) begins[h] = begins[h + 1];
    begins[HASHES] = (int32_t)size;
    return index;
}

/* Fills `first` and `is_first` for a part; returns the number of hashes. */
static int first_hashes(Index *index, const Part *part) {
    int count = 0;
    memset(index->is_first, 0, sizeof index->is_first);
    for (int64_t p = 0; p < part->count; p++) {
        int skips = 0;
        for (int64_t a = 0; a < part->pieces[p].count; a++) {
            const Alternative *alternative = part->pieces[p].alternatives + a;
            int64_t i = 0;
            while (i < alternative->size && (alternative->letters[i] == '^' || alternative->letters[i] == '$')) i++;
            skips |= i == alternative->size;
            if (i == alternative->size) continue;
            int hash = hash_of(alternative->letters[i]);
            uint64_t bit = (uint64_t)1 << hash % 64;
            if (index->begins[hash] == index->begins[hash + 1] || index->is_first[hash / 64] & bit) continue;
            index->is_first[hash / 64] |= bit;
            index->first[count++] = (int16_t)hash;
        }
        if (!skips) break;
    }
    return count;
}

/* Spans of a part. Only letters are tried with which it can begin, so the time is that of what looks like the part. */
static void find_part(Index *index, const Part *part, int harmless, Spans *found) {
    const Folded *f = index->folded;
    const int16_t *hashes = index->first;
    int64_t letters = 0;
    int count = first_hashes(index, part);
    found->count = 0;
    for (int i = 0; i < count; i++) letters += index->begins[hashes[i] + 1] - index->begins[hashes[i]];
    Search search = {f, part, 0, harmless, found};
    if (count > 1 && letters > f->text.count / 16) { /* in the order of the text, so that the spans are sorted */
        for (; search.start < f->text.count; search.start++) {
            int hash = hash_of(f->text.data[search.start]);
            if (index->is_first[hash / 64] >> hash % 64 & 1) match(&search, 0, search.start);
        }
    } else
        for (int i = 0; i < count; i++)
            for (int32_t at = index->begins[hashes[i]]; at < index->begins[hashes[i] + 1]; at++) {
                search.start = index->order[at];
                match(&search, 0, search.start);
            }
    sort_spans(found);
}

static int may_follow(const Folded *f, int64_t end, int64_t next, int harmless) {
    int32_t most = NONE;
    int latin = 1, speaks = 0;
    for (int64_t i = end; i <= next; i++) most = f->breaks.data[i] > most ? f->breaks.data[i] : most;
    for (int64_t i = end; i < next; i++) {
        int32_t letter = f->text.data[i];
        latin &= is_latin(letter);
        speaks |= has_letter(&f->rules->speaking, letter);
    }
    return (next - end <= f->rules->limit[GAP] || latin) && most < (harmless ? CLAUSE : SENTENCE) && !(harmless && speaks);
}

/* Index of the first of sorted spans that begins at `place` or later. */
static int64_t first_from(const Spans *spans, int64_t place) {
    int64_t low = 0, high = spans->count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (spans->data[middle].start < place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Joins spans with those of the next part that may follow; Joiner.joined. A harmless phrase has only the longest of its
 * spans that end together, so that no text makes more spans than it has letters. */
static void join(Index *index, const Spans *spans, const Spans *part, int harmless, Spans *joined) {
    const Folded *f = index->folded;
    joined->count = 0;
    for (int64_t i = 0; i < spans->count; i++) {
        int32_t start = spans->data[i].start;
        int64_t end = spans->data[i].end, last = end + f->rules->limit[LATIN_GAP];
        for (int64_t j = first_from(part, end); j < part->count && part->data[j].start <= last; j++) {
            int32_t *mark = index->mark + part->data[j].end; /* the spans are sorted: the first to arrive is the longest */
            if ((harmless ? *mark : *mark == start + 1) || !may_follow(f, end, part->data[j].start, harmless)) continue;
            *mark = start + 1;
            add(joined, (Span){start, part->data[j].end});
        }
    }
    for (int64_t i = 0; i < joined->count; i++) index->mark[joined->data[i].end] = 0;
    sort_spans(joined);
}

/* Spans of a phrase: those of its parts, one after the other with a gap between. */
static void find_phrase(Index *index, const Part *parts, int64_t count, int harmless, Spans *spans) {
    Spans found = {0}, next = {0};
    find_part(index, parts, harmless, spans);
    for (int64_t p = 1; p < count && spans->count; p++) {
        find_part(index, parts + p, harmless, &found);
        join(index, spans, &found, harmless, &next);
        Spans old = *spans;
        *spans = next;
        next = old;
        spans->failed |= next.failed | found.failed;
    }
    free(found.data);
    free(next.data);
}

/* For each letter the furthest end of the spans that begin there or before it; Cover. Returns whether memory is short. */
static int cover(int32_t **furthest, const Spans *spans, int64_t size) {
    if (!*furthest) *furthest = calloc((size_t)size + 1, sizeof **furthest);
    if (!*furthest) return 1;
    for (int64_t i = 0; i < spans->count; i++) {
        int32_t *known = *furthest + spans->data[i].start;
        *known = spans->data[i].end > *known ? spans->data[i].end : *known;
    }
    return 0;
}

static void spread(int32_t *furthest, int64_t size) {
    for (int64_t i = 1; furthest && i <= size; i++) furthest[i] = furthest[i] > furthest[i - 1] ? furthest[i] : furthest[i - 1];
}

/* Whether a span is inside a harmless one, or inside a longer title. */
static int is_held(const int32_t *covers, const int32_t *titles, Span span) {
    if (covers && covers[span.start] >= span.end) return 1;
    return titles && (titles[span.start] > span.end || (span.start && titles[span.start - 1] >= span.end));
}

/* Whether the folded text has a phrase of the list outside of its harmless ones and of titles. All of them are added to
 * `hits`, if it is given: of phrases that count only together the first. */
static int has_hit(const Folded *f, const Phrases *list, const Spans *titles, Spans *hits, int *failed) {
    int64_t size = f->text.count;
    Index *index = make_index(f);
    Spans spans = {0};
    int32_t *covers = NULL, *in_title = NULL;
    int found = 0, short_of_memory = !index || (titles->count && cover(&in_title, titles, size));
    spread(in_title, size);
    for (int64_t l = 0; l < list->count && !short_of_memory; l++) {
        const Line *line = list->lines + l;
        if (!line->harmless) continue;
        find_phrase(index, line->part, line->ends[0], 1, &spans);
        if (spans.count) short_of_memory = cover(&covers, &spans, size);
    }
    spread(covers, size);
    for (int64_t l = 0; l < list->count && (hits || !found) && !short_of_memory; l++) {
        const Line *line = list->lines + l;
        if (line->harmless) continue;
        int64_t before = hits ? hits->count : 0;
        int hit = 1;
        for (int64_t p = 0, begin = 0; p < line->phrases && hit; begin = line->ends[p++]) {
            find_phrase(index, line->part + begin, line->ends[p] - begin, 0, &spans);
            hit = 0;
            for (int64_t i = 0; i < spans.count && !(hit && (p || !hits)); i++) {
                if (is_held(covers, in_title, spans.data[i])) continue;
                hit = 1;
                if (hits && !p) add(hits, spans.data[i]);
            }
        }
        found |= hit;
        if (hits && !hit) hits->count = before;
    }
    *failed |= short_of_memory | spans.failed | (hits && hits->failed);
    free_index(index);
    free(covers);
    free(in_title);
    free(spans.data);
    return found;
}

/* Phrases.without_innocent: the folded text without the phrases that the classifier does not see; what was beside one begins
 * a clause. */
static void without_innocent(const Folded *f, const Phrases *list, Folded *rest, int *failed) {
    int64_t size = f->text.count, last = -1;
    Index *index = make_index(f);
    Spans spans = {0};
    int32_t *covers = NULL;
    int short_of_memory = !index;
    for (int64_t l = 0; l < list->count && !short_of_memory; l++) {
        if (list->lines[l].harmless != 2) continue;
        find_phrase(index, list->lines[l].part, list->lines[l].ends[0], 1, &spans);
        if (spans.count) short_of_memory = cover(&covers, &spans, size);
    }
    spread(covers, size);
    rest->rules = f->rules;
    for (int64_t i = 0; i < size && !short_of_memory; i++) {
        if (covers && covers[i] > i) continue;
        int32_t between = f->breaks.data[i], least = i == last + 1 ? NONE : last < 0 ? SENTENCE : CLAUSE;
        push_letter(rest, f->text.data[i], f->places.data[i], between > least ? between : least);
        last = i;
    }
    push(&rest->breaks, SENTENCE);
    *failed |= short_of_memory | spans.failed | fold_failed(rest);
    free_index(index);
    free(covers);
    free(spans.data);
}

/* Index of the first folded letter of a place of the text, or of one after it. */
static int32_t letter_at(const Folded *f, int64_t place) {
    int32_t low = 0, high = (int32_t)f->places.count;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (f->places.data[middle] < place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void find_titles(const Numbers *text, const Folded *f, Spans *titles) {
    int64_t open = -1;
    for (int64_t i = 0; i < text->count; i++) {
        if (text->data[i] == 0x300a) open = i + 1; /* 《 */
        if (text->data[i] == 0x300b && open >= 0) { /* 》 */
            add(titles, (Span){letter_at(f, open), letter_at(f, i)});
            open = -1;
        }
    }
    if (titles->count != 1 || titles->data[0].start != 0 || titles->data[0].end != f->text.count) return;
    for (int64_t i = 0; i < f->text.count; i++) /* a whole message by a speaking person is a sentence, not a title */
        if (has_letter(&f->rules->speaking, f->text.data[i])) titles->count = 0;
}

/* Whether a text has a phrase of the list. The spans of all of them in `plain`, the folded text, are added to `hits`, if it
 * is given. */
static int has_phrase(const Numbers *text, const Folded *plain, const Phrases *list, int spares_titles, Spans *hits,
                      int *failed) {
    Spans titles = {0};
    Folded other = {0};
    if (!list->count) return 0;
    if (spares_titles) find_titles(text, plain, &titles);
    int found = has_hit(plain, list, &titles, hits, failed);
    if (hits || !found) {
        int64_t first = hits ? hits->count : 0;
        int differs = respelled(plain, list, &other);
        if (differs && !fold_failed(&other)) {
            int has_titles = titles.count > 0;
            titles.count = 0;
            if (has_titles) find_titles(text, &other, &titles);
            found |= has_hit(&other, list, &titles, hits, failed);
        }
        for (int64_t i = first; hits && i < hits->count; i++) {
            const int32_t *places = other.places.data;
            hits->data[i].end = letter_at(plain, places[hits->data[i].end - 1] + 1);
            hits->data[i].start = letter_at(plain, places[hits->data[i].start]);
        }
    }
    *failed |= fold_failed(&other) | titles.failed;
    free_folded(&other);
    free(titles.data);
    return found;
}

/* Scores of the parts of a message. */
typedef struct {
    const struct Safety *rules;
    const int32_t *text, *breaks; /* of the piece of the message that is divided */
    int64_t size, count;          /* letters of the piece; parts scored so far */
    double best;
    uint8_t *seen; /* one bit for each bucket, all 0 between two parts */
} Scores;

enum { FEW_BUCKETS = 512 }; /* at least four for each letter of a part of LONG_LETTERS letters, and for its two ends */

/* NeedClassifier.scores of one part: letters `start` to `end`. */
static void score_part(Scores *scores, int64_t start, int64_t end) {
    const struct Safety *s = scores->rules;
    int64_t sum = 0, different = 0;
    uint32_t few[FEW_BUCKETS];
    for (int64_t from = start - 1; from <= end; from++)
        for (int64_t size = 1; size <= LONGEST_NGRAM && from + size <= end + 1; size++) {
            uint32_t hash = 0;
            for (int64_t i = 0; i < size; i++) {
                int64_t at = from + i;
                uint32_t letter = at < start ? '^' : at == end ? '$' : (uint32_t)scores->text[at];
                hash += letter * s->multipliers[(size - 1) * LONGEST_NGRAM + i];
            }
            hash ^= hash >> 15;
            hash *= 0x2c1b3c6du;
            uint32_t bucket = hash >> (32 - BITS);
            if (scores->seen[bucket / 8] >> bucket % 8 & 1) continue;
            scores->seen[bucket / 8] |= (uint8_t)(1 << bucket % 8);
            sum += s->weights[bucket];
            if (different < FEW_BUCKETS) few[different] = bucket;
            different++;
        }
    if (different > FEW_BUCKETS) memset(scores->seen, 0, BUCKETS / 8);
    else /* much quicker than clearing all of them */
        for (int64_t i = 0; i < different; i++) scores->seen[few[i] / 8] = 0;
    double score = s->bias + s->scale * (double)sum / sqrt((double)different);
    scores->best = score > scores->best ? score : scores->best;
    scores->count++;
}

static int32_t break_at(const Scores *scores, int64_t place) {
    return place == 0 || place == scores->size ? SENTENCE : scores->breaks[place];
}

/* Whether the space before a letter divides clauses. */
static int divides(const Scores *scores, int64_t place) {
    if (break_at(scores, place) != SPACE || (is_latin(scores->text[place - 1]) && is_latin(scores->text[place]))) return 0;
    return break_at(scores, place - 1) == NONE && break_at(scores, place + 1) == NONE;
}

static int begins_clause(const Scores *scores, int64_t place) {
    return break_at(scores, place) >= CLAUSE || divides(scores, place);
}

static void score_windows(Scores *scores, int64_t start, int64_t end) {
    int64_t most = scores->rules->limit[LONG_LETTERS], size = end - start;
    if (size <= most) {
        if (size >= scores->rules->limit[SHORT_LETTERS]) score_part(scores, start, end);
        return;
    }
    for (int64_t at = start; at < end - most / 2; at += most / 2) score_part(scores, at, at + most < end ? at + most : end);
}

/* Scores sentences, or clauses: each in windows, and pairs of neighbours. */
static void score_pieces(Scores *scores, int clauses) {
    int64_t most = scores->rules->limit[LONG_LETTERS], before = -1, start = 0;
    for (int64_t place = 1; place <= scores->size; place++) {
        if (!(clauses ? begins_clause(scores, place) : break_at(scores, place) == SENTENCE)) continue;
        if (start == 0 && place == scores->size && place <= most) return; /* scored as a whole */
        score_windows(scores, start, place);
        if (before >= 0 && place - before <= most) score_part(scores, before, place);
        before = start;
        start = place;
    }
}

static void score_piece(Scores *scores, const Folded *f, int64_t start, int64_t end) {
    scores->text = f->text.data + start;
    scores->breaks = f->breaks.data + start;
    scores->size = end - start;
    if (scores->size <= scores->rules->limit[LONG_LETTERS]) score_part(scores, 0, scores->size);
    score_pieces(scores, 0);
    score_pieces(scores, 1);
}

/* Scores letters `start` to `end` without the Latin ones from `first` to `last`, if there are Chinese ones, too. */
static void score_without_fillers(Scores *scores, int64_t start, int64_t first, int64_t last, int64_t end, int *failed) {
    int64_t count = 0, chinese = 0;
    int32_t *letters = malloc((size_t)(end - start + 1) * sizeof *letters);
    if (letters == NULL) {
        *failed = 1;
        return;
    }
    for (int64_t i = start; i < end; i++) {
        int is_inside = i >= first && i < last;
        if (is_inside && is_latin(scores->text[i])) continue;
        letters[count++] = scores->text[i];
        chinese += is_inside;
    }
    if (chinese && count < end - start) {
        const int32_t *text = scores->text;
        scores->text = letters;
        score_part(scores, 0, count);
        scores->text = text;
    }
    free(letters);
}

/* surroundings of classifier.py: scores each phrase with a little of its clause before and after it. */
static void score_surroundings(Scores *scores, const Folded *f, const Spans *phrases, int *failed) {
    int64_t side = scores->rules->limit[SIDE_LETTERS];
    scores->text = f->text.data;
    scores->breaks = f->breaks.data;
    scores->size = f->text.count;
    for (int64_t i = 0; i < phrases->count; i++) {
        int64_t start = phrases->data[i].start, end = phrases->data[i].end, first = start - side, last = end + side;
        int64_t first_letter = start, end_letter = end;
        while (start > 0 && start > first && !begins_clause(scores, start)) start--;
        while (end < scores->size && end < last && !begins_clause(scores, end)) end++;
        score_part(scores, start, end);
        score_without_fillers(scores, start, first_letter, end_letter, end, failed);
    }
}

/* NeedClassifier.finds, where the message is not too short: whether it, or a phrase in it, scores at least as much as
 * one in need. */
static int is_in_need(const struct Safety *s, const Folded *f, const Spans *phrases, int *failed) {
    int64_t size = f->text.count, half = s->limit[MOST_LETTERS] / 2;
    double least = phrases->count && s->veto < s->threshold ? s->veto : s->threshold;
    Scores scores = {s, NULL, NULL, 0, 0, -INFINITY, calloc(BUCKETS / 8, 1)};
    if (!scores.seen) return *failed = 1, 0;
    score_surroundings(&scores, f, phrases, failed);
    int found = scores.best >= least;
    if (!found) {
        scores.best = -INFINITY;
        scores.count = 0;
        if (size <= s->limit[MOST_LETTERS])
            score_piece(&scores, f, 0, size);
        else {
            score_piece(&scores, f, 0, half);
            score_piece(&scores, f, size - half, size);
        }
        double many = (double)scores.count / (double)s->limit[FEW_PARTS];
        found = scores.best - s->per_doubling * log2(many > 1 ? many : 1) >= least;
    }
    free(scores.seen);
    return found;
}

/* Keeps the phrases that begin before a place of the message and end at it or later. Returns whether one of them ends not
 * more than a few letters before an edge. */
static int keep_crossing(const Folded *f, int64_t place, Spans *phrases) {
    int64_t kept = 0;
    int ends = 0;
    for (int64_t i = 0; i < phrases->count; i++) {
        Span span = phrases->data[i];
        if (f->places.data[span.start] >= place || f->places.data[span.end - 1] < place) continue;
        phrases->data[kept++] = span;
        for (int64_t at = span.end; at <= span.end + f->rules->limit[TAIL_LETTERS] && at < f->breaks.count; at++)
            ends |= f->breaks.data[at] > NONE;
    }
    phrases->count = kept;
    return ends;
}

/* Safety.is_crisis: whether a folded message mentions suicide or self-harm.
 *
 * from: Place of the last of several messages: a phrase counts that those before it begin, see Safety._is_split; or 0.
 * needs_phrase: Whether only phrases count, not the classifier alone. */
static int has_need(const struct Safety *s, const Numbers *message, const Folded *f, int64_t from, int needs_phrase, int *failed) {
    int64_t letters = f->text.count;
    int vetoes = s->has_classifier && s->limit[SHORT_LETTERS] <= letters && letters <= s->limit[LONG_LETTERS];
    Spans phrases = {0};
    int found = has_phrase(message, f, s->lists + CRISIS_LIST, 1, vetoes || from ? &phrases : NULL, failed);
    if (from) {
        found = keep_crossing(f, from, &phrases);
        needs_phrase = !phrases.count;
        if (!found) phrases.count = 0;
    }
    int judges = found ? vetoes : !needs_phrase && s->has_classifier && letters >= s->limit[FEWEST_LETTERS];
    if (judges && !(found && has_phrase(message, f, s->lists + CERTAIN_LIST, 1, NULL, failed)))
        found = is_in_need(s, f, &phrases, failed);
    if (judges && found && !phrases.count) {
        Folded rest = {0};
        without_innocent(f, s->lists + CRISIS_LIST, &rest, failed);
        if (!*failed && rest.text.count < letters)
            found = rest.text.count >= s->limit[FEWEST_LETTERS] && is_in_need(s, &rest, &phrases, failed);
        free_folded(&rest);
    }
    free(phrases.data);
    return found;
}

/* displayed of characters.py: the text as it is shown, where U+202E reverses what follows, up to the end of the line. */
static void displayed(const Numbers *text, Numbers *shown) {
    int64_t from = -1, depth = 0;
    for (int64_t i = 0; i <= text->count; i++) {
        int32_t c = i < text->count ? text->data[i] : '\n';
        int ends_line = c == '\n' || c == '\r' || c == 0x2029;
        int opens = c == 0x202a || c == 0x202b || c == 0x202d || c == 0x202e, closes = c == 0x202c;
        if (from >= 0) depth += opens - closes;
        if (from >= 0 && (ends_line || depth == 0)) {
            while (shown->count < i && !shown->failed) push(shown, text->data[i - 1 - (shown->count - from)]);
            from = -1;
        }
        if (from < 0 && c == 0x202e) from = i, depth = 1;
        if (from < 0 && i < text->count) push(shown, c);
    }
}

/* other_reading of characters.py: the text as it is shown, with characters for pictures and with digits for the symbols next
 * to Latin letters (k!ll, $uicide); returns whether it differs from the text. */
static int other_reading(const struct Safety *s, const Numbers *text, Numbers *other) {
    int differs = 0;
    displayed(text, other);
    for (int64_t i = 0; i < other->count; i++)
        for (int64_t which = 0; which < s->symbols.count; which++)
            if (s->symbols.data[which] == other->data[i] && !is_latin(s->symbol_digits.data[which])) {
                other->data[i] = s->symbol_digits.data[which]; /* a picture; the text has no symbol in its place */
                break;
            }
    for (int64_t at = 0, end; at < other->count; at = end + (end == at)) {
        int64_t which = -1;
        for (end = at; end < other->count && has_letter(&s->symbols, other->data[end]); end++) {}
        int is_next_to_letter = (at && is_alphabetic(other->data[at - 1])) || (end < other->count && is_alphabetic(other->data[end]));
        for (int64_t i = at; is_next_to_letter && i < end; i++) {
            for (which = 0; s->symbols.data[which] != other->data[i];) which++;
            other->data[i] = s->symbol_digits.data[which];
        }
    }
    for (int64_t i = 0; i < text->count && i < other->count && !differs; i++) differs = text->data[i] != other->data[i];
    return differs;
}

static void push_text(Numbers *to, const int32_t *letters, int64_t count) {
    for (int64_t i = 0; i < count; i++) push(to, letters[i]);
}

/* Whether a text has a certain phrase; if `from` is not 0, one that begins before that place and ends at it or later. */
static int has_certain(const struct Safety *s, const Numbers *text, int64_t from, int *failed) {
    Folded f = {0};
    Spans phrases = {0};
    int found = 0;
    if (!text->failed) fold(s, text, &f);
    if (text->failed || fold_failed(&f))
        *failed = 1;
    else
        found = has_phrase(text, &f, s->lists + CERTAIN_LIST, 1, from ? &phrases : NULL, failed);
    if (found && from) {
        keep_crossing(&f, from, &phrases);
        found = phrases.count > 0;
    }
    free(phrases.data);
    free_folded(&f);
    return found;
}

/* Whether a message asks for means, if an earlier one was a crisis message: AFTER_NEED of rules.py. */
static int asks_for_means(const struct Safety *s, const Numbers *message, int *failed) {
    static const int32_t after_need[] = {' ', 0x5148, 0x524d, 0x6c42, 0x52a9}; /* 先前求助 */
    Numbers text = {0};
    push_text(&text, message->data, message->count);
    push_text(&text, after_need, 5);
    int found = has_certain(s, &text, 0, failed);
    free(text.data);
    return found;
}

/* Safety._is_confirmation: whether the bot asked about suicide and the person says yes. */
static int is_confirmation(const struct Safety *s, const Numbers *question, const Numbers *message, int *failed) {
    static const int32_t answered[] = {' ', 0x7b54, ' '}; /* 答 */
    Numbers text = {0};
    for (int64_t i = question->count > QUESTION_CHARACTERS ? question->count - QUESTION_CHARACTERS : 0; i < question->count; i++) {
        const int32_t *entry = entry_of(s, question->data[i]);
        push(&text, (entry[1] & 255) == SEPARATOR && entry[2] == SENTENCE ? 0xff0c : question->data[i]);
    }
    push_text(&text, answered, 3);
    int64_t last = text.count;
    push_text(&text, message->data, message->count);
    int found = has_certain(s, &text, last, failed);
    free(text.data);
    return found;
}

static int kind_of(const struct Safety *s, const Numbers *message, int *failed) {
    Folded f = {0}, g = {0};
    Numbers other = {0};
    int kind = ORDINARY;
    fold(s, message, &f);
    if (fold_failed(&f)) {
        *failed = 1;
        free_folded(&f);
        return kind;
    }
    int found = has_need(s, message, &f, 0, 0, failed);
    if (!found && other_reading(s, message, &other)) {
        fold(s, &other, &g);
        if (fold_failed(&g))
            *failed = 1;
        else
            found = has_need(s, &other, &g, 0, 1, failed);
    }
    *failed |= other.failed;
    free(other.data);
    free_folded(&g);
    if (found)
        kind = CRISIS;
    else {
        kind = f.text.count >= s->ordinary_letters ? ORDINARY : SHORT;
        for (int i = BETTER; i >= MEANS; i--)
            if (has_phrase(message, &f, s->lists + MEANS_LIST + i - MEANS, 0, NULL, failed)) kind = i;
        if (kind == MEANS && asks_for_means(s, message, failed)) kind = ASKING;
    }
    free_folded(&f);
    return kind;
}

/* Safety._is_split: whether the last of a person's messages ends a phrase that those before it began, which are `split[1]` and
 * more messages earlier. `turns` ends with the last message; the bot's replies are between the messages. */
static int is_split(const struct Safety *s, const Numbers *turns, const int8_t *split, int *failed) {
    Numbers joined = {0};
    Folded f = {0};
    int64_t last = 0;
    int found = 0;
    for (int i = split[2] ? 2 : 1; i >= 0; i--) {
        const Numbers *turn = turns - 2 * split[i];
        last = joined.count;
        push_text(&joined, turn->data, turn->count);
        if (i) push(&joined, ' ');
    }
    if (!joined.failed) fold(s, &joined, &f);
    if (joined.failed || fold_failed(&f))
        *failed = 1;
    else
        found = has_need(s, &joined, &f, last, 1, failed);
    free(joined.data);
    free_folded(&f);
    return found;
}

/* Safety._kind_after: the kind of the last of `count` turns, crisis if it completes what earlier turns began. */
static int kind_after(const struct Safety *s, const Numbers *turns, int32_t count, int *failed) {
    static const int8_t splits[][3] = {{0, 1, 0}, {0, 1, 2}, {0, 2, 0}, {0, 2, 3}, {0, 1, 3}};
    const Numbers *message = turns + count - 1;
    int32_t messages = (count + 1) / 2, few = 0;
    int kind = kind_of(s, message, failed);
    if (kind == CRISIS || message->count > s->limit[JOINED_CHARACTERS]) return kind;
    if (count > 1 && is_confirmation(s, message - 1, message, failed)) return CRISIS;
    while (few < messages && few < 4 && message[-2 * few].count <= s->limit[JOINED_CHARACTERS]) few++;
    for (int i = 0; i < 5; i++) {
        int furthest = splits[i][2] ? splits[i][2] : splits[i][1], parts = splits[i][2] ? 3 : 2;
        if (furthest >= few || parts > s->limit[JOINED_MESSAGES] || (parts <= furthest && message->count == 1)) continue;
        if (is_split(s, message, splits[i], failed)) return CRISIS;
    }
    return kind;
}

/* Safety.answer: the conversation is in need from a crisis message until the talk has clearly moved on. */
const uint8_t *fixed_reply(const struct Safety *s, const Numbers *turns, int32_t count, int64_t *size, int *failed) {
    int32_t first = (count - 1) % 2, messages = (count + 1) / 2, begin = messages - 1;
    int8_t *kinds = malloc((size_t)messages);
    const Text *reply = NULL;
    int64_t ordinary = 0, number = 0, crises = 0;
    int needing = 0, asks = 0, has_needed = 0;
    if (!kinds) return *failed = 1, NULL;
    for (int32_t i = begin; i >= 0; i--) { /* back to where the conversation was not in need */
        int kind = kind_after(s, turns, first + 2 * i + 1, failed);
        if (i < messages - 1) {
            ordinary = kind == ORDINARY ? ordinary + 1 : kind == SHORT ? ordinary : 0;
            if (kind == BETTER || ordinary == s->ordinary_messages) break;
        }
        kinds[begin = i] = (int8_t)kind;
        asks |= kind == ASKING;
    }
    for (int32_t i = begin - 1; asks && i >= 0 && !has_needed; i--)
        has_needed = kind_after(s, turns, first + 2 * i + 1, failed) == CRISIS;
    ordinary = 0;
    for (int32_t i = begin; i < messages; i++) {
        int kind = kinds[i];
        has_needed |= kind == CRISIS;
        if (!needing && (kind == CRISIS || (kind == ASKING && has_needed))) needing = 1, number = crises = 0;
        reply = NULL;
        if (!needing) continue;
        number++;
        crises += kind == CRISIS;
        int said = kind == CRISIS ? AGAIN : kind == ASKING ? MEANS : kind;
        reply = kind == CRISIS && crises == 1 ? &s->crisis_reply : s->replies[said] + number % s->reply_count[said];
        ordinary = kind == ORDINARY ? ordinary + 1 : kind == SHORT ? ordinary : 0;
        if (kind == BETTER || ordinary == s->ordinary_messages) needing = 0, ordinary = 0;
    }
    free(kinds);
    if (!reply && s->refuses) {
        Folded f = {0};
        fold(s, turns + count - 1, &f);
        if (fold_failed(&f))
            *failed = 1;
        else if (has_phrase(turns + count - 1, &f, s->lists + WORDS_LIST, 0, NULL, failed))
            reply = &s->refusal;
        free_folded(&f);
    }
    if (reply) *size = reply->size;
    return reply ? reply->bytes : NULL;
}
