/* Prints the build of the arithmetic and the ids of replies: talk WEIGHTS SEEDS MESSAGE...; for emulators. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

int main(int count, char **arguments) {
    char fault[256] = "usage: talk WEIGHTS SEEDS MESSAGE...";
    Bot *bot = count > 3 ? xl_open(arguments[1], fault, sizeof fault) : NULL;
    Chat *chat = bot ? xl_chat(bot) : NULL;
    if (!chat) return fprintf(stderr, "%s\n", fault), 1;
    printf("%s\n", xl_kernel(bot));
    for (int seed = 0; seed < atoi(arguments[2]); seed++)
        for (int i = 3; i < count; i++) {
            int32_t size = (int32_t)strlen(arguments[i]);
            int64_t tokens;
            int running = xl_begin(chat, arguments[i], &size, 1, seed, NULL, 1) ? -1 : 1;
            while (running > 0) running = xl_step(chat);
            if (running < 0) return fprintf(stderr, "%s\n", xl_fault(chat)), 1;
            const int32_t *ids = xl_ids(chat, &tokens);
            for (int64_t t = 0; t < tokens; t++) printf("%d ", ids[t]);
            printf("%a\n", xl_log_prob(chat));
        }
    xl_end(chat);
    xl_close(bot);
    return 0;
}
