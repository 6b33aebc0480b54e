/* A conversation: the prompt of a history, its state, and the reply; chatbot/chat/bot.py without Python. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sample.h"

enum { REMEMBERED = 3, MAX_TURNS = 100000, MAX_MESSAGE = 100000, CHARACTERS_PER_TOKEN = 32 };

struct Chat {
    const Bot *bot;
    State *prompt, *rows_state; /* [layers]: one row after the prompt; one per candidate */
    float *memory, *rows_memory;
    int64_t rows_room;
    Numbers read, roles; /* the tokens that `prompt` has read, and their speakers */
    float *logits;       /* [V] after the prompt */
    float *rows_logits;  /* [candidates, V] */
    Row *rows;
    int32_t count, *tokens; /* candidates and their last tokens */
    int64_t position;       /* tokens of each unfinished row before its next one */
    int32_t reply_speaker, started, finished, fixed_size;
    uint32_t seed;
    const uint8_t *fixed; /* the reply is this text */
    double settings[XL_SETTINGS];
    Numbers *turns, earlier[REMEMBERED];
    int32_t turn_count, earlier_count;
    Chooser chooser;
    int32_t best;
    uint8_t *text;
    int64_t text_room, text_from, text_size;
    char fault[256];
};

static int fail(Chat *chat, const char *fault) {
    snprintf(chat->fault, sizeof chat->fault, "%s", fault);
    chat->finished = 1;
    return -1;
}

/* Floats of one layer's state of one row, and where its arrays begin. */
static int64_t state_floats(const Model *m, const Layer *layer) {
    int64_t taps = m->taps ? (m->taps - 1) * 3 * m->inner : 0;
    return taps + (layer->kind == ELU ? m->inner * (m->head + 1) : 2 * m->window * m->inner);
}

static int64_t all_floats(const Model *m) {
    int64_t total = 0;
    for (int64_t i = 0; i < m->layers; i++) total += state_floats(m, m->layer + i);
    return total;
}

/* Lays the states of `rows` rows out in memory, each array [rows, ...]. */
static void lay_out(const Model *m, State *states, float *memory, int64_t rows) {
    for (int64_t i = 0; i < m->layers; i++) {
        int64_t taps = m->taps ? (m->taps - 1) * 3 * m->inner : 0;
        State *state = states + i;
        state->inputs = memory;
        memory += rows * taps;
        if (m->layer[i].kind == ELU) {
            state->recurrent = memory;
            state->normalizer = memory + rows * m->inner * m->head;
            memory += rows * m->inner * (m->head + 1);
        } else {
            state->keys = memory;
            state->values = memory + rows * m->window * m->inner;
            memory += rows * 2 * m->window * m->inner;
        }
    }
}

static void copy_state(const Model *m, const State *from, State *to, int64_t row) {
    for (int64_t i = 0; i < m->layers; i++) {
        int64_t taps = m->taps ? (m->taps - 1) * 3 * m->inner : 0, matrix = m->inner * m->head, ring = m->window * m->inner;
        memcpy(to[i].inputs + row * taps, from[i].inputs, (size_t)taps * sizeof(float));
        if (m->layer[i].kind == ELU) {
            memcpy(to[i].recurrent + row * matrix, from[i].recurrent, (size_t)matrix * sizeof(float));
            memcpy(to[i].normalizer + row * m->inner, from[i].normalizer, (size_t)m->inner * sizeof(float));
        } else {
            memcpy(to[i].keys + row * ring, from[i].keys, (size_t)ring * sizeof(float));
            memcpy(to[i].values + row * ring, from[i].values, (size_t)ring * sizeof(float));
        }
    }
}

Chat *xl_chat(const Bot *bot) {
    Chat *chat = calloc(1, sizeof *chat);
    size_t V = (size_t)bot->vocabulary, layers = (size_t)bot->model.layers;
    if (!chat) return NULL;
    chat->bot = bot;
    chat->prompt = calloc(layers, sizeof(State));
    chat->rows_state = calloc(layers, sizeof(State));
    chat->memory = calloc((size_t)all_floats(&bot->model), sizeof(float));
    chat->logits = calloc(V, sizeof(float));
    chat->chooser = (Chooser){bot, chat->settings, chat->earlier, 0, calloc(3 * V, sizeof(float)), NULL, NULL,
                              calloc(V, sizeof(double)), calloc(V, sizeof(Keyed))};
    Chooser *c = &chat->chooser;
    c->ruled = c->allowed + V;
    c->space = c->allowed + 2 * V;
    chat->text = calloc(1, 64);
    chat->text_room = 64;
    chat->finished = 1;
    if (!chat->prompt || !chat->rows_state || !chat->memory || !chat->logits || !c->allowed || !c->weights || !c->order || !chat->text) {
        xl_end(chat);
        return NULL;
    }
    lay_out(&bot->model, chat->prompt, chat->memory, 1);
    return chat;
}

static void clear_turns(Chat *chat) {
    for (int32_t i = 0; i < chat->turn_count; i++) free(chat->turns[i].data);
    free(chat->turns);
    chat->turns = NULL;
    chat->turn_count = chat->earlier_count = 0;
}

static void clear_rows(Chat *chat) {
    for (int32_t i = 0; i < chat->count; i++) free(chat->rows[i].ids.data);
    free(chat->rows);
    free(chat->tokens);
    chat->rows = NULL;
    chat->tokens = NULL;
    chat->count = 0;
}

void xl_end(Chat *chat) {
    if (!chat) return;
    clear_turns(chat);
    clear_rows(chat);
    free(chat->prompt);
    free(chat->rows_state);
    free(chat->memory);
    free(chat->rows_memory);
    free(chat->logits);
    free(chat->rows_logits);
    free(chat->read.data);
    free(chat->roles.data);
    free(chat->chooser.allowed);
    free(chat->chooser.weights);
    free(chat->chooser.order);
    free(chat->text);
    free(chat);
}

/* Reads tokens of the dialogue of the prompt. */
static int read_tokens(Chat *chat, const int32_t *ids, const int32_t *roles, int64_t count) {
    enum { AT_ONCE = 64 };
    int64_t rows[AT_ONCE] = {0}, tokens[AT_ONCE], speakers[AT_ONCE], positions[AT_ONCE], wanted[AT_ONCE];
    for (int64_t begin = 0; begin < count; begin += AT_ONCE) {
        int64_t now = count - begin < AT_ONCE ? count - begin : AT_ONCE;
        for (int64_t i = 0; i < now; i++) {
            tokens[i] = ids[begin + i];
            speakers[i] = roles[begin + i];
            positions[i] = chat->read.count;
            wanted[i] = begin + i == count - 1 ? 0 : -1;
            push(&chat->read, ids[begin + i]);
            push(&chat->roles, roles[begin + i]);
        }
        if (chat->read.failed || chat->roles.failed ||
            chat->bot->kernel.read(&chat->bot->model, chat->prompt, now, rows, tokens, speakers, positions, wanted, chat->logits))
            return 1;
    }
    return 0;
}

static void forget(Chat *chat) {
    memset(chat->memory, 0, (size_t)all_floats(&chat->bot->model) * sizeof(float));
    chat->read.count = chat->roles.count = 0;
}

enum { RESERVE = 8 };

/* Index of the first turn that the model still sees; chatbot/text/dialogue.py. */
static int32_t fit(const Chat *chat) {
    int64_t total = 1, context = chat->bot->context;
    int32_t first = 0;
    for (int32_t i = 0; i < chat->turn_count; i++) {
        total += chat->turns[i].count + 1;
        if (total > context - (i == chat->turn_count - 1 ? 0 : context / RESERVE))
            while (total > context / 2 && first < i) total -= chat->turns[first++].count + 1;
    }
    return first;
}

/* Reads [CLS] u0 [SEP] u1 [SEP] ..., continuing from what has been read already. */
static int read_prompt(Chat *chat) {
    Numbers ids = {0}, roles = {0};
    int32_t first = fit(chat);
    for (int32_t i = first; i < chat->turn_count; i++) {
        if (i == first) push(&ids, chat->bot->cls);
        for (int64_t j = 0; j < chat->turns[i].count; j++) push(&ids, chat->turns[i].data[j]);
        push(&ids, chat->bot->end);
        while (roles.count < ids.count && !roles.failed) push(&roles, i % 2);
    }
    int failed = ids.failed || roles.failed;
    int64_t known = chat->read.count;
    size_t bytes = (size_t)known * sizeof(int32_t);
    if (!failed && (known > ids.count || (known && (memcmp(chat->read.data, ids.data, bytes) || memcmp(chat->roles.data, roles.data, bytes))))) {
        forget(chat);
        known = 0;
    }
    if (!failed) failed = read_tokens(chat, ids.data + known, roles.data + known, ids.count - known);
    if (failed) {
        chat->read.failed = chat->roles.failed = 0;
        forget(chat);
    }
    free(ids.data);
    free(roles.data);
    return failed;
}

/* Makes a row for each candidate. */
static int start_rows(Chat *chat, uint32_t seed) {
    const Model *m = &chat->bot->model;
    int32_t count = (int32_t)chat->settings[XL_CANDIDATES];
    size_t V = (size_t)chat->bot->vocabulary;
    if (count > chat->rows_room) {
        free(chat->rows_memory);
        free(chat->rows_logits);
        chat->rows_memory = calloc((size_t)count * (size_t)all_floats(m), sizeof(float));
        chat->rows_logits = calloc((size_t)count * V, sizeof(float));
        chat->rows_room = chat->rows_memory && chat->rows_logits ? count : 0;
    }
    chat->rows = calloc((size_t)count, sizeof *chat->rows);
    chat->tokens = calloc((size_t)count, sizeof *chat->tokens);
    if (!chat->rows_room || !chat->rows || !chat->tokens) return 1;
    chat->count = count;
    lay_out(m, chat->rows_state, chat->rows_memory, count);
    for (int32_t row = 0; row < count; row++) {
        copy_state(m, chat->prompt, chat->rows_state, row);
        memcpy(chat->rows_logits + (size_t)row * V, chat->logits, V * sizeof(float));
        seed_random(&chat->rows[row].random, row ? candidate_seed(seed, row) : seed);
    }
    chat->position = chat->read.count;
    return 0;
}

/* Shortens a turn that overfills the context to one that overfills it as well; bounded_turns of chatbot/chat/request.py. */
static void shorten(Numbers *points, int64_t most) {
    if (points->count <= most) return;
    int64_t half = most / 2, rest = most - half;
    int32_t *data = points->data;
    memmove(data + half + 1, data + points->count - rest, (size_t)rest * sizeof *data);
    data[half] = '\n';
    points->count = most + 1;
}

/* Encodes the turns; returns a fault, or NULL. */
static const char *take_turns(Chat *chat, const char *turns, const int32_t *sizes, int32_t count, int use_safety) {
    Numbers *points = calloc((size_t)count, sizeof *points);
    const char *fault = points ? NULL : "Memory is short.";
    chat->turns = calloc((size_t)count, sizeof *chat->turns);
    if (!points || !chat->turns) {
        free(points);
        return "Memory is short.";
    }
    chat->turn_count = count;
    int failed = 0;
    for (int32_t i = 0; i < count; i++) {
        to_points((const uint8_t *)turns, sizes[i], points + i);
        turns += sizes[i];
        failed |= points[i].failed;
    }
    int64_t size = 0;
    if (!failed && use_safety && chat->bot->safety)
        chat->fixed = fixed_reply(chat->bot->safety, points, count, &size, &failed);
    chat->fixed_size = (int32_t)size;
    int64_t max_tokens = chat->bot->context / 2, longest = CHARACTERS_PER_TOKEN * max_tokens;
    int too_long = points[count - 1].count > (longest < MAX_MESSAGE ? longest : MAX_MESSAGE);
    for (int32_t i = 0; i < count && !failed; i++) {
        shorten(points + i, (int64_t)CHARACTERS_PER_TOKEN * chat->bot->context);
        clean_points(chat->bot, points + i);
        if (i == count - 1 && !points[i].count) fault = "The message is empty; type something to talk about.";
        if (!chat->fixed && !too_long) encode(chat->bot, points + i, chat->turns + i);
        failed |= chat->turns[i].failed;
    }
    for (int32_t i = 0; i < count; i++) free(points[i].data);
    free(points);
    if (failed) return "Memory is short.";
    too_long |= chat->turns[count - 1].count > max_tokens;
    return !fault && !chat->fixed && too_long ? "The message is too long. Send it in parts." : fault;
}

int xl_begin(Chat *chat, const char *turns, const int32_t *sizes, int32_t count, int64_t seed, const double *settings,
             int use_safety) {
    clear_turns(chat);
    clear_rows(chat);
    chat->fixed = NULL;
    chat->started = chat->best = 0;
    chat->text_size = 0;
    chat->fault[0] = 0;
    memcpy(chat->settings, settings ? settings : chat->bot->settings, sizeof chat->settings);
    const char *fault = check_settings(chat->settings);
    if (fault) return fail(chat, fault);
    if (seed < 0 || seed > 0x7fffffff) return fail(chat, "The seed must be a whole number from 0 to 2147483647.");
    if (count < 1) return fail(chat, "The history is empty: give at least one turn.");
    if (count > MAX_TURNS) return fail(chat, "The history has too many turns.");
    for (int32_t i = 0; i < count; i++)
        if (sizes[i] < 0) return fail(chat, "A turn has a negative length.");
    fault = take_turns(chat, turns, sizes, count, use_safety);
    if (fault) return fail(chat, fault);
    chat->finished = 0;
    if (chat->fixed) return 0;
    for (int32_t i = count - 2; i >= 0 && chat->earlier_count < REMEMBERED; i -= 2)
        chat->earlier[chat->earlier_count++] = chat->turns[i];
    chat->chooser.earlier_count = chat->earlier_count;
    chat->reply_speaker = count % 2;
    chat->seed = (uint32_t)seed;
    return 0;
}

/* Reads the last token of every unfinished row. */
static int read_rows(Chat *chat) {
    int64_t numbers[5][64], lanes = 0;
    for (int32_t row = 0; row < chat->count; row++) {
        if (chat->rows[row].reason) continue;
        numbers[0][lanes] = numbers[4][lanes] = row;
        numbers[1][lanes] = chat->tokens[row];
        numbers[2][lanes] = chat->reply_speaker;
        numbers[3][lanes++] = chat->position;
    }
    chat->position++;
    return chat->bot->kernel.read(&chat->bot->model, chat->rows_state, lanes, numbers[0], numbers[1], numbers[2], numbers[3],
                                  numbers[4], chat->rows_logits);
}

static double likelihood(const Row *row) {
    int64_t tokens = row->ids.count + (row->reason != XL_LIMIT);
    return row->log_prob / sqrt((double)(tokens > 1 ? tokens : 1));
}

int xl_step(Chat *chat) {
    int64_t V = chat->bot->vocabulary;
    if (chat->finished) return chat->fault[0] ? -1 : 0;
    if (chat->fixed) return chat->finished = 1, 0;
    if (chat->started ? read_rows(chat) : read_prompt(chat) || start_rows(chat, chat->seed)) return fail(chat, "Memory is short.");
    chat->started = 1;
    int unfinished = 0;
    for (int32_t row = 0; row < chat->count; row++) {
        const char *fault;
        if (chat->rows[row].reason) continue;
        chat->tokens[row] = choose(&chat->chooser, chat->rows_logits + row * V, chat->rows + row, &fault);
        if (fault) return fail(chat, fault);
        unfinished += !chat->rows[row].reason;
    }
    if (unfinished) return 1;
    chat->finished = 1;
    for (int32_t row = 1; row < chat->count; row++)
        if (likelihood(chat->rows + row) > likelihood(chat->rows + chat->best)) chat->best = row;
    return 0;
}

static const Row *shown(const Chat *chat) {
    return chat->count && !chat->fixed && (chat->count == 1 || chat->finished) ? chat->rows + chat->best : NULL;
}

const int32_t *xl_ids(const Chat *chat, int64_t *count) {
    const Row *row = shown(chat);
    *count = row ? row->ids.count : 0;
    return row ? row->ids.data : NULL;
}

double xl_log_prob(const Chat *chat) { return shown(chat) ? shown(chat)->log_prob : 0; }

int xl_reason(const Chat *chat) {
    if (chat->fixed) return XL_SAFETY;
    return shown(chat) ? shown(chat)->reason : XL_RUNNING;
}

const char *xl_fault(const Chat *chat) { return chat->fault; }

/* Decodes the reply, and trims it as str.strip() does. */
const char *xl_text(Chat *chat) {
    const Row *row = shown(chat);
    const Bot *bot = chat->bot;
    int64_t size = chat->fixed ? chat->fixed_size : 0, pending;
    for (int64_t i = 0; row && i < row->ids.count; i++) size += bot->offsets[row->ids.data[i] + 1] - bot->offsets[row->ids.data[i]];
    chat->text_size = chat->text_from = 0;
    if (size >= chat->text_room) {
        uint8_t *text = realloc(chat->text, (size_t)(2 * size + 64));
        if (!text) return "";
        chat->text = text;
        chat->text_room = 2 * size + 64;
    }
    size = 0;
    if (chat->fixed) {
        size = chat->fixed_size;
        memcpy(chat->text, chat->fixed, (size_t)size);
    }
    for (int64_t i = 0; row && i < row->ids.count; i++) {
        uint32_t from = bot->offsets[row->ids.data[i]], length = bot->offsets[row->ids.data[i] + 1] - from;
        memcpy(chat->text + size, bot->pieces + from, length);
        size += length;
    }
    chat->text_size = complete_bytes(chat->text, size, chat->text, &pending);
    if (!chat->fixed) trim(bot, chat->text, &chat->text_from, &chat->text_size);
    chat->text[chat->text_from + chat->text_size] = 0;
    return (const char *)chat->text + chat->text_from;
}

int64_t xl_text_bytes(const Chat *chat) { return chat->text_size; }
