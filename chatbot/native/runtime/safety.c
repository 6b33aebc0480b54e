#include "weights.h"
struct Safety *load_safety(const uint8_t *bytes, int64_t size) { (void)bytes; (void)size; return NULL; }
void free_safety(struct Safety *safety) { (void)safety; }
const uint8_t *fixed_reply(const struct Safety *s, const Numbers *t, int32_t c, int64_t *size, int *failed) { (void)s;(void)t;(void)c;(void)size;(void)failed; return NULL; }
