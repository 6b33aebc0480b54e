/* Bans, rules against repetition, temperature, EOS floor, truncation, and the draw; see sample.h. */
#include "sample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NO_TOKEN = -1 };

/* Maximum number of tokens before the end is forced: at most t0 + 2 delta. */
int64_t limit_of(const double *s) {
    int64_t most = (int64_t)s[XL_MAX_REPLY], floor = (int64_t)(s[XL_FLOOR_START] + 2 * s[XL_FLOOR_DELTA]);
    if (s[XL_FLOOR_START] < 0) return most;
    return most < 0 || floor < most ? floor : most;
}

static float largest_of(const float *x, int64_t n) { /* NaN if one is */
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        if (isnan(x[i])) return x[i];
        top = x[i] > top ? x[i] : top;
    }
    return top;
}

/* Writes the logits of the tokens that may follow; returns 1 if there is none, or a logit is not a number. */
static int allow(const Chooser *c, const float *logits, const Row *row) {
    const Bot *bot = c->bot;
    float *allowed = c->allowed;
    memcpy(allowed, logits, (size_t)bot->vocabulary * sizeof *allowed);
    for (int64_t v = 0; v < bot->vocabulary; v++)
        if (bot->special[v]) allowed[v] = -INFINITY;
    ban(bot, row->ids.data, row->ids.count, allowed);
    forbid_unreadable(bot, row->ids.data, row->ids.count, allowed);
    float end = allowed[bot->end];
    if (row->ids.count < c->settings[XL_MIN_REPLY]) allowed[bot->end] = -INFINITY;
    float largest = largest_of(allowed, bot->vocabulary);
    if (largest == -INFINITY) { /* banned words or unreadable characters leave no other token: allow the end early */
        allowed[bot->end] = end;
        largest = largest_of(allowed, bot->vocabulary);
    }
    return isnan(largest) || isinf(largest);
}

/* Times that each token completed the n-gram that the reply ends with; its logit loses `cost` for each. */
static void count_completions(const Chooser *c, const Row *row, const Numbers *text, float *times) {
    int64_t size = (int64_t)c->settings[XL_NGRAM] - 1;
    const int32_t *last = row->ids.data + row->ids.count - size;
    for (int64_t start = 0; start + size < text->count; start++) {
        int32_t token = text->data[start + size];
        int same = size == 0 || !memcmp(text->data + start, last, (size_t)size * sizeof *last);
        if (same && token != c->bot->end) times[token] += 1;
    }
}

static void mark_used(const Chooser *c, const Numbers *text, float *used) {
    for (int64_t i = 0; i < text->count; i++)
        if (text->data[i] != c->bot->end) used[text->data[i]] = 1;
}

/* Writes the logits after the rules against repetition; none changes the logit of the end. */
static void rule(const Chooser *c, const Row *row) {
    int64_t V = c->bot->vocabulary, ngram = (int64_t)c->settings[XL_NGRAM];
    float *ruled = c->ruled, *marks = c->space, penalty = (float)c->settings[XL_PENALTY];
    memcpy(ruled, c->allowed, (size_t)V * sizeof *ruled);
    if (penalty != 1) {
        memset(marks, 0, (size_t)V * sizeof *marks);
        mark_used(c, &row->ids, marks);
        for (int i = 0; i < c->earlier_count; i++) mark_used(c, c->earlier + i, marks);
        for (int64_t v = 0; v < V; v++)
            if (marks[v]) ruled[v] = ruled[v] > 0 ? ruled[v] / penalty : ruled[v] * penalty;
    }
    if (ngram && row->ids.count >= ngram - 1) {
        float cost = (float)c->settings[XL_REPEAT_COST];
        memset(marks, 0, (size_t)V * sizeof *marks);
        count_completions(c, row, &row->ids, marks);
        for (int i = 0; i < c->earlier_count; i++) count_completions(c, row, c->earlier + i, marks);
        for (int64_t v = 0; v < V; v++)
            if (marks[v]) ruled[v] -= cost * marks[v];
    }
    if (largest_of(ruled, V) == -INFINITY) memcpy(ruled, c->allowed, (size_t)V * sizeof *ruled);
}

/* log sum exp of the scores. */
static double log_total(const float *x, int64_t n, double temperature) {
    double top = largest_of(x, n), total = 0;
    for (int64_t i = 0; i < n; i++) total += exp((x[i] - top) / temperature);
    return top / temperature + log(total);
}

/* log(1 - f) of the EOS floor, as chatbot/decoding/rules/eos_floor.py rounds it. */
static double log_rest(const Chooser *c, const Row *row) {
    const double *s = c->settings;
    int64_t late = row->ids.count - (int64_t)s[XL_FLOOR_START];
    if (s[XL_FLOOR_START] < 0 || late <= 0) return 0;
    return (double)((float)late * (float)(-0.69314718055994530942 / s[XL_FLOOR_DELTA]));
}

static int32_t best(const Chooser *c, const Row *row, int *by_floor) {
    int64_t V = c->bot->vocabulary, top = 0, other = -1, end = c->bot->end;
    const float *x = c->ruled;
    for (int64_t v = 0; v < V; v++) {
        if (x[v] > x[top]) top = v;
        if (v != end && (other < 0 || x[v] > x[other])) other = v;
    }
    double rest = log_rest(c, row);
    *by_floor = 0;
    if (rest == 0 || top == end) return (int32_t)top;
    double total = log_total(x, V, 1), p_end = exp(x[end] - total) * exp(rest) - expm1(rest);
    double p_other = exp(x[other] - total) * exp(rest);
    *by_floor = p_end > p_other || (p_end == p_other && end < other);
    return (int32_t)(*by_floor ? end : top);
}

static int descending(const void *a, const void *b) { /* ties in the order of ids */
    const Keyed *x = a, *y = b;
    return x->key > y->key ? -1 : x->key < y->key ? 1 : (x->id > y->id) - (x->id < y->id);
}

/* Sorts the tokens with positive weights by `keys`; returns their number. */
static int64_t sort_tokens(const Chooser *c, const double *keys) {
    int64_t count = 0;
    for (int64_t v = 0; v < c->bot->vocabulary; v++)
        if (c->weights[v] > 0) c->order[count++] = (Keyed){keys[v], (int32_t)v};
    qsort(c->order, (size_t)count, sizeof *c->order, descending);
    return count;
}

static void keep_first(const Chooser *c, int64_t kept, int64_t count) {
    for (int64_t i = kept; i < count; i++)
        if (!(c->settings[XL_KEEP_EOS] && c->order[i].id == c->bot->end)) c->weights[c->order[i].id] = 0;
}

static double total_of(const Chooser *c) {
    double total = 0;
    for (int64_t v = 0; v < c->bot->vocabulary; v++) total += c->weights[v];
    return total;
}

/* Number of sorted tokens whose mass reaches a share of the total. */
static int64_t reach(const Chooser *c, int64_t count, double share) {
    double needed = share * total_of(c), mass = 0;
    int64_t kept = 0;
    while (kept < count && mass < needed) mass += c->weights[c->order[kept++].id];
    return kept;
}

static void keep_typical(const Chooser *c, double *keys) {
    double total = total_of(c), entropy = 0;
    for (int64_t v = 0; v < c->bot->vocabulary; v++)
        if (c->weights[v] > 0) entropy -= c->weights[v] / total * log(c->weights[v] / total);
    for (int64_t v = 0; v < c->bot->vocabulary; v++)
        keys[v] = c->weights[v] > 0 ? -fabs(-log(c->weights[v] / total) - entropy) : 0;
    int64_t count = sort_tokens(c, keys);
    keep_first(c, reach(c, count, c->settings[XL_TYPICAL_P]), count);
}

/* The weights of a draw under any truncation, in the order top-k, nucleus, typical, min-p; `keys` is scratch [V]. */
static void weigh_all(const Chooser *c, double rest, double *keys) {
    const double *s = c->settings;
    int64_t V = c->bot->vocabulary, end = c->bot->end, count;
    double top = largest_of(c->ruled, V), total = 0;
    for (int64_t v = 0; v < V; v++) total += c->weights[v] = exp((c->ruled[v] - top) / s[XL_TEMPERATURE]);
    if (rest < 0) {
        for (int64_t v = 0; v < V; v++) c->weights[v] *= exp(rest);
        c->weights[end] -= expm1(rest) * total;
    }
    if (s[XL_TOP_K]) {
        count = sort_tokens(c, c->weights);
        int64_t kept = s[XL_TOP_K] < (double)count ? (int64_t)s[XL_TOP_K] : count;
        while (kept > 0 && kept < count && c->order[kept].key == c->order[kept - 1].key) kept++;
        keep_first(c, kept, count);
    }
    if (s[XL_TOP_P] < 1) {
        count = sort_tokens(c, c->weights);
        keep_first(c, reach(c, count, s[XL_TOP_P]), count);
    }
    if (s[XL_TYPICAL_P] < 1) keep_typical(c, keys);
    if (s[XL_MIN_P] > 0) {
        double least = 0;
        for (int64_t v = 0; v < V; v++) least = c->weights[v] > least ? c->weights[v] : least;
        for (int64_t v = 0; v < V; v++)
            if (c->weights[v] < least * s[XL_MIN_P] && !(s[XL_KEEP_EOS] && v == end)) c->weights[v] = 0;
    }
}

/* By inversion, the end first, then by id; -1 if memory is short. */
static int32_t draw_any(const Chooser *c, const Row *row, double u, int *by_floor) {
    int64_t V = c->bot->vocabulary, end = c->bot->end, last = end;
    double rest = log_rest(c, row), *keys = malloc((size_t)V * sizeof *keys);
    *by_floor = 0;
    if (!keys) return NO_TOKEN;
    weigh_all(c, rest, keys);
    double left = u * total_of(c) - c->weights[end];
    for (int64_t v = 0; v < V && left >= 0; v++) {
        if (v == end || c->weights[v] == 0) continue;
        last = v; /* the last token also receives what rounding leaves over */
        left -= c->weights[v];
    }
    if (last == end && rest < 0) {
        weigh_all(c, 0, keys);
        *by_floor = u * total_of(c) >= c->weights[end];
    }
    free(keys);
    return (int32_t)last;
}

int32_t choose(const Chooser *c, const float *logits, Row *row, const char **fault) {
    const double *s = c->settings;
    int64_t V = c->bot->vocabulary, token = c->bot->end, floored = 0;
    int by_floor = 0;
    double log_prob;
    *fault = NULL;
    if (allow(c, logits, row)) {
        *fault = "The model's output is not a number: the weights file is damaged. Export it again.";
        return NO_TOKEN;
    }
    rule(c, row);
    if (s[XL_GREEDY]) {
        token = best(c, row, &by_floor);
        log_prob = c->allowed[token] - log_total(c->allowed, V, 1);
    } else if (s[XL_TOP_K] || s[XL_MIN_P] > 0 || s[XL_TYPICAL_P] < 1) {
        token = draw_any(c, row, next_random(&row->random), &by_floor);
        log_prob = token < 0 ? 0 : c->allowed[token] - log_total(c->allowed, V, 1);
    } else {
        double options[2] = {s[XL_TEMPERATURE], s[XL_TOP_P]}, left = exp(log_rest(c, row)), u = next_random(&row->random);
        if (c->bot->kernel.draw(c->allowed, c->ruled, options, &left, &u, &token, &floored, &log_prob, 1, V, c->bot->end,
                                s[XL_KEEP_EOS] != 0))
            token = NO_TOKEN;
        by_floor = floored != 0;
    }
    if (token < 0) {
        *fault = "Memory is short.";
        return NO_TOKEN;
    }
    if (row->ids.count >= limit_of(s)) {
        row->reason = XL_LIMIT;
        return c->bot->end;
    }
    row->log_prob += log_prob;
    if (token == c->bot->end)
        row->reason = by_floor ? XL_FLOOR : XL_EOS;
    else
        push(&row->ids, (int32_t)token);
    if (row->ids.failed) *fault = "Memory is short.";
    return (int32_t)token;
}
