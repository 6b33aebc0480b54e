/* Prints the build of the arithmetic and the ids of replies: talk WEIGHTS SEEDS FILE, for emulators. The file holds one
 * message in UTF-8 a line, because Windows gives arguments in other encodings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

int main(int count, char **arguments) {
    char fault[256] = "usage: talk WEIGHTS SEEDS FILE", line[1024];
    Bot *bot = count == 4 ? xl_open(arguments[1], fault, sizeof fault) : NULL;
    Chat *chat = bot ? xl_chat(bot) : NULL;
    if (!chat) return fprintf(stderr, "%s\n", fault), 1;
    printf("%s\n", xl_kernel(bot));
    for (int seed = 0; seed < atoi(arguments[2]); seed++) {
        FILE *messages = fopen(arguments[3], "rb");
        while (messages && fgets(line, sizeof line, messages)) {
            int32_t size = (int32_t)strcspn(line, "\n");
            int64_t tokens;
            int running = xl_begin(chat, line, &size, 1, seed, NULL, 1) ? -1 : 1;
            while (running > 0) running = xl_step(chat);
            if (running < 0) return fprintf(stderr, "%s\n", xl_fault(chat)), 1;
            const int32_t *ids = xl_ids(chat, &tokens);
            for (int64_t t = 0; t < tokens; t++) printf("%d ", ids[t]);
            printf("%.17g\n", xl_log_prob(chat));
        }
        if (messages) fclose(messages);
    }
    xl_end(chat);
    xl_close(bot);
    return 0;
}
