/* The chatbot without Python: a weights file, its tokenizer, and the decoder of chatbot/decoding.
 *
 * xl_open maps a file that `xianliao-export --to lite` wrote; a chat answers histories with it, one token per xl_step.
 * The same history, seed and settings give the same reply as Python in int8 (docs/lite.md says where rounding may
 * differ). A bot may be shared by threads once it is open; a chat belongs to one thread at a time. */
#ifndef XIANLIAO_RUNTIME_H
#define XIANLIAO_RUNTIME_H
#include <stdint.h>

#if defined(_WIN32)
#define XL_API __declspec(dllexport)
#else
#define XL_API __attribute__((visibility("default")))
#endif

/* Decoding settings, as in chatbot/decoding/settings.py; all are doubles, so that every caller can fill an array. */
enum {
    XL_GREEDY, XL_CANDIDATES, XL_TEMPERATURE, XL_TOP_K, XL_TOP_P, XL_MIN_P, XL_TYPICAL_P, XL_PENALTY, XL_NGRAM,
    XL_REPEAT_COST,  /* infinity forbids */
    XL_KEEP_EOS,
    XL_FLOOR_START,  /* -1: no floor */
    XL_FLOOR_DELTA,
    XL_MAX_REPLY,    /* -1: t0 + 2 delta */
    XL_MIN_REPLY,
    XL_SETTINGS
};
enum { XL_RUNNING, XL_EOS, XL_FLOOR, XL_LIMIT, XL_SAFETY }; /* why a reply ended */

typedef struct Bot Bot;
typedef struct Chat Chat;

XL_API Bot *xl_open(const char *path, char *fault, int64_t fault_bytes);
/* The bytes must stay until xl_close, at an address that is a multiple of 16. */
XL_API Bot *xl_open_memory(const void *bytes, int64_t size, char *fault, int64_t fault_bytes);
XL_API void xl_close(Bot *bot);
XL_API const double *xl_settings(const Bot *bot);
XL_API const char *xl_kernel(const Bot *bot);

XL_API Chat *xl_chat(const Bot *bot); /* NULL if memory is short */
XL_API void xl_end(Chat *chat);
/* Reads a history and checks it for people in crisis, before xl_step decodes the reply: `count` turns in UTF-8, one after the other, oldest first, of sizes[i] bytes.
 * settings: XL_SETTINGS numbers, or NULL for those of the file. Returns 0, or -1 with a text in xl_fault. */
XL_API int xl_begin(Chat *chat, const char *turns, const int32_t *sizes, int32_t count, int64_t seed,
                    const double *settings, int use_safety);
/* Decodes a token of each candidate. Returns 1 while the reply is unfinished, 0 at its end, -1 on a fault. */
XL_API int xl_step(Chat *chat);
/* The text so far in UTF-8, without unfinished characters; empty while there are several candidates. */
XL_API const char *xl_text(Chat *chat);
XL_API int64_t xl_text_bytes(const Chat *chat);
XL_API const int32_t *xl_ids(const Chat *chat, int64_t *count);
XL_API double xl_log_prob(const Chat *chat);
XL_API int xl_reason(const Chat *chat);
XL_API const char *xl_fault(const Chat *chat);
/* Tokens of a text after cleaning, for tests and counting; `ids` holds `room`. Returns their number, or -1. */
XL_API int64_t xl_encode(const Bot *bot, const char *text, int64_t bytes, int32_t *ids, int64_t room);
#endif
