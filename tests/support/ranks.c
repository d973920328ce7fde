/* See ranks.h. */
#include "tests/support/ranks.h"
#include <pthread.h>
#include <stdlib.h>

typedef struct Rank {
    pthread_t thread;
    int rank;
    Comm *world;
    RankFunction function;
    void *argument;
} Rank;

static void *run(void *context) {
    Rank *rank = context;
    rank->function(rank->rank, rank->world, rank->argument);
    comm_free(rank->world);
    return NULL;
}

void ranks_run(int size, RankFunction function, void *argument) {
    Comm **ends = calloc((size_t)size, sizeof(Comm *));
    Rank *ranks = calloc((size_t)size, sizeof *ranks);
    check(ends && ranks);
    comm_threads_new(size, ends);
    for (int r = 0; r < size; r++) {
        ranks[r] = (Rank){.rank = r, .world = ends[r], .function = function, .argument = argument};
        check(pthread_create(&ranks[r].thread, NULL, run, &ranks[r]) == 0);
    }
    for (int r = 0; r < size; r++) pthread_join(ranks[r].thread, NULL);
    free(ranks);
    free(ends);
}
