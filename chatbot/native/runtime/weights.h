/* The weights file, checked and ready; chatbot/checkpoint/export/lite.py writes it and describes it. */
#ifndef XIANLIAO_WEIGHTS_H
#define XIANLIAO_WEIGHTS_H
#include <math.h>
#include <stddef.h>

#include "runtime.h"
#include "step.h"

typedef struct {
    int32_t *data;
    int64_t count, room;
    int failed; /* memory was short */
} Numbers;

void push(Numbers *numbers, int32_t value);

typedef struct {
    const uint8_t *bytes;
    int64_t size;
    int32_t token; /* of a piece: its id */
} Word;

typedef struct {
    Word *data;
    int64_t count;
} Words;

typedef struct {
    Words words, guarded, exceptions, tokens; /* sorted: words without and with exceptions, exceptions, pieces of the tokens */
    int64_t longest;
    uint8_t *always, *inside; /* [V]: tokens that contain a word; a word with exceptions */
    uint8_t *lowered; /* pieces in lower case */
} Banned;

/* Replacements of texts by others of the same length. */
typedef struct {
    const int32_t *index, *points; /* (start, length) of each key in points, by first character; the value follows the key */
    int64_t count;
    int spares_descriptions; /* of characters: sequences like U+2FF0 and two characters, which OpenCC leaves as they are */
} Stage;

enum { MAX_STAGES = 8, MAX_PIECE = 4096 };

/* How a turn is read, and which tokens are readable; characters.c. */
typedef struct {
    const int32_t *kinds; /* (first character, kinds) of each range */
    const int32_t *zhu_after, *zhu_before;
    int64_t kind_count, zhu_after_count, zhu_before_count, stage_count;
    int32_t zhu, particle;
    Stage stages[MAX_STAGES];
    uint8_t *unreadable; /* [V] */
} Characters;

struct Safety;

typedef struct {
    uint64_t key; /* first id << 32 | second id, plus 1; 0 is empty */
    int32_t rank, made;
} Merge;

struct Bot {
    const uint8_t *file;
    uint64_t size;
    void *mapping; /* memory to release */
    Model model;
    Layer *layers;
    int32_t vocabulary, speakers, context, cls, end;
    double settings[XL_SETTINGS];
    const uint32_t *offsets; /* [V + 1] into pieces */
    const uint8_t *pieces, *special;
    const int32_t *byte_ids, *character_ids, *ranges;
    int64_t character_count, range_count;
    Merge *merges;
    uint64_t merge_mask;
    Characters characters;
    Banned banned;
    struct Safety *safety;
    Kernel kernel;
};

/* Reads little-endian numbers of a part; `failed` is set at its end. */
typedef struct {
    const uint8_t *at, *end;
    int failed;
} Reader;

const char *check_settings(const double *settings);

int64_t read_number(Reader *reader);
/* Code points of a text with its length before it; NULL if it is cut off. */
const uint8_t *read_bytes(Reader *reader, int64_t *size);

const char *load_banned(Bot *bot, const uint8_t *text, int64_t size);
void ban(const Bot *bot, const int32_t *ids, int64_t count, float *logits);
void free_banned(Banned *banned);

int64_t decode_one(const uint8_t *bytes, int64_t size, int32_t *point);
int64_t complete_bytes(const uint8_t *bytes, int64_t size, uint8_t *out, int64_t *pending);
/* Index of the range (first, value) that has a number; the ranges begin at 0. */
int64_t range_of(const int32_t *ranges, int64_t count, int32_t number);
void to_points(const uint8_t *bytes, int64_t size, Numbers *points);
void encode(const Bot *bot, const Numbers *points, Numbers *ids);

int load_characters(Bot *bot, const uint8_t *bytes, int64_t size);
void clean_points(const Bot *bot, Numbers *points);
void trim(const Bot *bot, const uint8_t *text, int64_t *from, int64_t *size);
void forbid_unreadable(const Bot *bot, const int32_t *ids, int64_t count, float *logits);

struct Safety *load_safety(const uint8_t *bytes, int64_t size);
void free_safety(struct Safety *safety);
/* The fixed reply to a history, or NULL if the model may answer; *failed is set if memory is short. */
const uint8_t *fixed_reply(const struct Safety *safety, const Numbers *turns, int32_t count, int64_t *size, int *failed);
#endif
