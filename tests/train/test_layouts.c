/* Whole runs with all four objectives, dropout on, on every kind of layout up to 8 ranks: the losses and the parameters
 * of one process. The layouts are drawn up so that every two choices meet in one of them (all pairs). */
#include "base/files.h"
#include "tests/train/tiny_compare.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 8, MICROBATCHES = 8 };
#define STEPS "train.steps=20", "checkpoint.every=0" // saved at the end alone

// ---- the choices ----

typedef enum { DATA, PIPELINE, TENSOR, SEQUENCE, SCHEDULE, SPLIT, ZERO, RECOMPUTE, PRECISION, AXES } Axis;
enum { MOST_CHOICES = 6 };
static const struct {
    const char *key, *choice[MOST_CHOICES];
    int count;
} axes[AXES] = {
    [DATA] = {"parallel.data", {"1", "2", "4", "8"}, 4},
    [PIPELINE] = {"parallel.pipeline", {"1", "2", "3", "4"}, 4},
    [TENSOR] = {"parallel.tensor", {"1", "2", "4"}, 3},
    [SEQUENCE] = {"parallel.sequence", {"false", "true"}, 2},
    [SCHEDULE] = {"parallel.schedule", {"gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v"}, 6},
    [SPLIT] = {"parallel.split", {"blocks", "cost"}, 2},
    [ZERO] = {"parallel.zero", {"0", "1", "2", "3"}, 4},
    [RECOMPUTE] = {"train.recompute", {"none", "selective", "full"}, 3},
    [PRECISION] = {"precision", {"f32", "bf16"}, 2},
};

typedef struct Chosen {
    int of[AXES]; // index of the choice
} Chosen;

static int value_of(const Chosen *c, Axis axis) { return (int)strtol(axes[axis].choice[c->of[axis]], NULL, 10); }
static int ranks_of(const Chosen *c) { return value_of(c, DATA) * value_of(c, PIPELINE) * value_of(c, TENSOR); }

// Whether there is such a layout: ZeRO 2 and 3 do not go with stages, and interleaved wants microbatches in groups of
// them. Without stages nothing is said of schedules and splits.
static bool exists(const Chosen *c) {
    int stages = value_of(c, PIPELINE), own = MICROBATCHES / value_of(c, DATA);
    bool interleaved = !strcmp(axes[SCHEDULE].choice[c->of[SCHEDULE]], "interleaved");
    if (ranks_of(c) > MOST_RANKS) return false;
    if (stages == 1) return c->of[SCHEDULE] == 0 && c->of[SPLIT] == 0;
    return value_of(c, ZERO) < 2 && !(interleaved && own % stages);
}

static bool next_of_all(Chosen *c) {
    for (int a = 0; a < AXES; a++) {
        if (++c->of[a] < axes[a].count) return true;
        c->of[a] = 0;
    }
    return false;
}

typedef bool Seen[AXES][MOST_CHOICES][AXES][MOST_CHOICES]; // two choices of two axes that have met

// Pairs of the layout that have not met before; `mark`: they have now.
static int new_pairs(const Chosen *c, Seen seen, bool mark) {
    int count = 0;
    for (int a = 0; a < AXES; a++)
        for (int b = a + 1; b < AXES; b++) {
            bool *met = &seen[a][c->of[a]][b][c->of[b]];
            count += !*met;
            *met |= mark;
        }
    return count;
}

// The layout that brings most new pairs; false where none brings any.
static bool next_layout(Seen seen, Chosen *best) {
    int most = 0;
    Chosen c = {0};
    do {
        int pairs = exists(&c) ? new_pairs(&c, seen, false) : 0;
        if (pairs <= most) continue;
        most = pairs;
        *best = c;
    } while (next_of_all(&c));
    if (most) new_pairs(best, seen, true);
    return most > 0;
}

// ---- runs ----

// Trains `name` on the layout.
static void train(const char *name, const Chosen *c, const char *const *more) {
    char setting[AXES][48];
    const char *settings[AXES + 16] = {
        "threads=1",
        "train.reproducible=layout",
        "train.microbatches=8",
        "model.vision.heads=4",
        "model.text.heads=4",
        "model.mae.decoder_heads=4",
        "parallel.bucket=8192",
        "optimizer.epsilon=0.001"}; // else rounding errors choose the steps of tiny gradients
    int n = 8;
    for (int a = 0; a < AXES; a++) {
        snprintf(setting[a], sizeof setting[a], "%s=%s", axes[a].key, axes[a].choice[c->of[a]]);
        settings[n++] = setting[a];
    }
    while (*more) settings[n++] = *more++;
    TrainResult result;
    Error error = {0};
    assert_done(tiny_train_ranks(&shared, name, settings, false, ranks_of(c), NULL, &result, &error), &error);
}

enum { NAME_MOST = 128 };
static void name_of(const Chosen *c, char name[NAME_MOST]) {
    int n = snprintf(name, NAME_MOST, "data%d-", value_of(c, DATA));
    if (c->of[PIPELINE])
        n += snprintf(name + n, NAME_MOST - (size_t)n, "pipeline%d-%s-%s-", value_of(c, PIPELINE),
                      axes[SCHEDULE].choice[c->of[SCHEDULE]], axes[SPLIT].choice[c->of[SPLIT]]);
    snprintf(name + n, NAME_MOST - (size_t)n, "tensor%d%s-zero%d-%s-%s", value_of(c, TENSOR),
             c->of[SEQUENCE] ? "s" : "", value_of(c, ZERO), axes[RECOMPUTE].choice[c->of[RECOMPUTE]],
             axes[PRECISION].choice[c->of[PRECISION]]);
}

static void remove_run(const char *name) {
    Error error = {0};
    char *path = temporary_path(shared.folder, name);
    assert_done(folder_remove(path, &error), &error);
    free(path);
}

typedef struct Base { // one process
    const char *name;
    double apart, end_apart; // the most from it to the same run with its sums in other orders: what a precision allows
} Base;

static Base base_of(int precision) {
    static const char *const names[][2] = {{"one-f32", "other-f32"}, {"one-bf16", "other-bf16"}};
    static const char *const orders[] = {"train.microbatches=3", "train.microbatches=1", "train.microbatches=5"};
    const Chosen alone = {.of[PRECISION] = precision};
    const char *one = names[precision][0], *other = names[precision][1];
    Base base = {.name = one};
    train(one, &alone, (const char *[]){STEPS, NULL});
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        train(other, &alone, (const char *[]){STEPS, "train.reproducible=run", orders[i], NULL});
        base.apart = fmax(base.apart, tiny_apart(&shared, one, other));
        base.end_apart = fmax(base.end_apart, tiny_end_apart(&shared, one, other));
        remove_run(other);
    }
    return base;
}

// Bit for bit over data ranks, stages, shares of the pieces and recomputation; tensor ranks add in another order.
static void every_layout_gives_the_losses_and_parameters_of_one_process(void **state) {
    (void)state;
    const Base bases[] = {base_of(0), base_of(1)};
    Seen seen = {0};
    Chosen c;
    char name[NAME_MOST];
    while (next_layout(seen, &c)) {
        const Base *base = &bases[c.of[PRECISION]];
        name_of(&c, name);
        train(name, &c, (const char *[]){STEPS, NULL});
        double apart = tiny_apart(&shared, base->name, name), end = tiny_end_apart(&shared, base->name, name);
        double room = c.of[TENSOR] ? 4 : 0;
        if (!(apart <= room * base->apart && end <= room * base->end_apart))
            fail_msg("%s: losses %g, parameters %g apart; sums in another order: %g, %g", name, apart, end, base->apart,
                     base->end_apart);
        remove_run(name);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_gives_the_losses_and_parameters_of_one_process),
    };
    return cmocka_run_group_tests(tests, open_shared, close_shared);
}
