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
    int guarded; /* has exceptions */
} Word;

typedef struct {
    Word *words, *exceptions;
    int64_t count, exception_count, longest;
    uint8_t *always, *inside; /* [V]: tokens that contain a word; a word with exceptions */
} Banned;

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
    const int32_t *byte_ids, *characters, *ranges;
    int64_t character_count, range_count;
    Merge *merges;
    uint64_t merge_mask;
    Banned banned;
    struct Safety *safety;
    Kernel kernel;
};

/* Reads little-endian numbers of the safety part; `failed` is set at its end. */
typedef struct {
    const uint8_t *at, *end;
    int failed;
} Reader;

const char *check_settings(const double *settings);

int64_t read_number(Reader *reader);
/* Code points of a text with its length before it; NULL if it is cut off. */
const uint8_t *read_bytes(Reader *reader, int64_t *size);

int load_banned(Bot *bot, const uint8_t *text, int64_t size);
void ban(const Bot *bot, const int32_t *ids, int64_t count, float *logits);
void free_banned(Banned *banned);

int64_t decode_one(const uint8_t *bytes, int64_t size, int32_t *point);
int64_t complete_bytes(const uint8_t *bytes, int64_t size, uint8_t *out, int64_t *pending);
void trim(const uint8_t *text, int64_t *from, int64_t *size);
void clean_points(Numbers *points);
void to_points(const uint8_t *bytes, int64_t size, Numbers *points);
void encode(const Bot *bot, const Numbers *points, Numbers *ids);

struct Safety *load_safety(const uint8_t *bytes, int64_t size);
void free_safety(struct Safety *safety);
/* The fixed reply to a history, or NULL if the model may answer; *failed is set if memory is short. */
const uint8_t *fixed_reply(const struct Safety *safety, const Numbers *turns, int32_t count, int64_t *size, int *failed);
#endif
