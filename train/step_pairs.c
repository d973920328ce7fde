/* See step_pairs.h. All is one block of device memory, which stays from step to step and grows where it must. */
#include "train/step_pairs.h"
#include <stdlib.h>

enum { ALIGNMENT = 256 };

struct StepPairs {
    Backend *backend;
    char *memory; // device
    size_t bytes;
    PairRing ring; // of the step
    int64_t own;   // pairs
    float *images, *texts;
    double *sums;            // (own pieces)
    float *d_scale, *d_bias; // (own pieces)
};

StepPairs *step_pairs_new(Backend *backend) {
    StepPairs *s = calloc(1, sizeof *s);
    check(s);
    s->backend = backend;
    return s;
}

void step_pairs_free(StepPairs *s) {
    if (!s) return;
    if (s->memory) s->backend->release(s->backend, s->memory, s->bytes);
    free(s);
}

// The next part of the block; only counted where there is none.
static void *take(char *memory, size_t *used, int64_t count, size_t size) {
    char *at = memory ? memory + *used : NULL;
    *used += ((size_t)count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

// Of the step at hand, in `memory`; returns its bytes.
static size_t lay_out(StepPairs *s, char *memory) {
    int pieces = s->ring.pieces / comm_size(s->ring.data);
    size_t used = 0, features = (size_t)s->ring.width * sizeof(float);
    s->images = take(memory, &used, s->own, features);
    s->texts = take(memory, &used, s->own, features);
    s->sums = take(memory, &used, pieces, sizeof *s->sums);
    s->d_scale = take(memory, &used, pieces, sizeof *s->d_scale);
    s->d_bias = take(memory, &used, pieces, sizeof *s->d_bias);
    s->ring.space = take(memory, &used, pair_ring_space(&s->ring), 1);
    return used;
}

void step_pairs_begin(StepPairs *s, Comm *data, const int64_t *rows, int pieces, int64_t width) {
    Backend *b = s->backend;
    int each = pieces / comm_size(data), first = each * comm_rank(data);
    s->ring = (PairRing){.data = data, .rows = rows, .pieces = pieces, .width = width};
    s->own = 0;
    for (int i = first; i < first + each; i++) s->own += rows[i];
    size_t bytes = lay_out(s, NULL);
    if (bytes > s->bytes) {
        if (s->memory) b->release(b, s->memory, s->bytes);
        s->memory = b->allocate(b, s->bytes = bytes);
        check(s->memory && "memory for the loss over pairs");
    }
    lay_out(s, s->memory);
    size_t features = (size_t)(s->own * width) * sizeof(float);
    if (!features) return;
    b->zero(b, s->images, features);
    b->zero(b, s->texts, features);
}

float *step_pairs_images(const StepPairs *s, int64_t row) { return s->images + row * s->ring.width; }
float *step_pairs_texts(const StepPairs *s, int64_t row) { return s->texts + row * s->ring.width; }
const double *step_pairs_sums(const StepPairs *s) { return s->sums; }

void step_pairs_loss(StepPairs *s, Tape *t, Joint *joint, bool gradients) {
    joint_pair_ring(t, joint, &s->ring);
    parameters_meet(joint_parameters(joint)); // before ranks wait for one another
    pair_ring(&s->ring, s->images, s->texts, s->sums, gradients ? s->d_scale : NULL, s->d_bias);
}

void step_pairs_play(const StepPairs *s, int piece, int64_t row, JointPass *pass) {
    pass->image_gradient = step_pairs_images(s, row);
    pass->text_gradient = step_pairs_texts(s, row);
    pass->scale_gradient = s->d_scale + piece;
    pass->bias_gradient = s->d_bias + piece;
}
