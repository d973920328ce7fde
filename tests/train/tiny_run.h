/* Scenes, a tokenizer and a config small enough to train a whole run in a test, all four objectives in every step. */
#pragma once
#include "tests/support/test.h"
#include "train/run.h"
#include "train/train_config.h"

typedef struct TinyRun {
    char *folder;      // scenes, datasets train and text, words.model; runs go here too
    const char *trace; // file for the timeline of the next run; NULL: none
} TinyRun;

void tiny_run_open(TinyRun *, uint64_t seed);
void tiny_run_close(TinyRun *);
// The one that all tests of a program train runs of their own in: cmocka_run_group_tests(tests, open_shared,
// close_shared).
extern TinyRun shared;
int open_shared(void **state);
int close_shared(void **state);
void tiny_run_remake_data(TinyRun *, uint64_t seed); // other scenes in the same place
// Trains `name` with settings behind the common ones; NULL at the end of `settings`. `stop` may be NULL.
bool tiny_train(const TinyRun *, const char *name, const char *const *settings, bool resume,
                const volatile sig_atomic_t *stop, TrainResult *, Error *);
// The same on `ranks` ranks that are threads of this process. stop: of each rank (ranks); NULL: none. The result and
// the error are rank 0's; fails where the others' are not the same.
bool tiny_train_ranks(const TinyRun *, const char *name, const char *const *settings, bool resume, int ranks,
                      const volatile sig_atomic_t *const *stop, TrainResult *, Error *);
// The same as one of the ranks of `world`, on this thread; all have the same run.
bool tiny_train_rank(const TinyRun *, const char *name, const char *const *settings, Comm *world, TrainResult *,
                     Error *);
// The config of such a run, in the arena.
void tiny_config(const TinyRun *, const char *const *settings, Arena *, TrainConfig *);
// A file of a run; the caller frees it.
char *tiny_run_path(const TinyRun *, const char *name, const char *file);
