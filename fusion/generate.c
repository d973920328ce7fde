/* See generate.h. R rows of a group, P positions of each prompt, V vocabulary, C width, K slots of an image, S side. */
#include "fusion/generate.h"
#include <stdlib.h>
#include <string.h>

typedef struct Generator { // what one call shares
    Tape *tape;
    Joint *joint;
    const JointConfig *config;
    const GenerateOptions *options;
    SequenceIds special;
    Arena *memory; // of one group
    const Prompt *prompts;
    TokenIds *out;
} Generator;

typedef struct Group {  // prompts of equal length that run together
    const int *members; // (rows) indices of prompts
    int rows, length;
    int64_t most; // new tokens
    KvCache *cache;
    int32_t *next;  // (rows) the token chosen last
    bool *finished; // (rows)
} Group;

int64_t prompt_length(const JointConfig *config, const Prompt *p) {
    int64_t length = 1; // <s>
    for (int i = 0; i < p->count; i++)
        length += p->segments[i].image >= 0 ? joint_image_tokens(config) : p->segments[i].count;
    return length;
}

static bool tape_ok(const Tape *tape, Error *error) {
    return !tape_error(tape) || error_set(error, ERROR_FAILED, "generating: %s", tape_error(tape));
}

// The group's images as one (I, S, S, 3); NULL where there are none.
static Tensor *group_images(Generator *g, const Group *group) {
    int64_t side = g->config->vision.image_size, images = 0, at = 0;
    size_t size = 3 * (size_t)(side * side);
    for (int r = 0; r < group->rows; r++) images += g->prompts[group->members[r]].images;
    if (!images) return NULL;
    uint8_t *pixels = arena_allocate(g->memory, size * (size_t)images);
    for (int r = 0; r < group->rows; r++) {
        const Prompt *p = &g->prompts[group->members[r]];
        if (p->images) memcpy(pixels + size * (size_t)at, p->pixels, size * (size_t)p->images);
        at += p->images;
    }
    return joint_image_tokens_forward(g->tape, g->joint, joint_pixels(g->tape, g->joint, pixels, (int)images));
}

static bool group_rows(Generator *g, const Group *group, Sequences *rows, Error *error) {
    int first = 0; // image of the group
    sequences_new(rows, g->memory, group->rows, group->length, g->special);
    for (int r = 0; r < group->rows; r++) {
        const Prompt *p = &g->prompts[group->members[r]];
        Segment *segments = arena_array(g->memory, Segment, p->count + 1);
        for (int i = 0; i < p->count; i++) {
            segments[i] = p->segments[i];
            if (segments[i].image >= 0) segments[i].image += first;
        }
        first += p->images;
        if (!sequence_put(rows, r, segments, p->count, joint_image_tokens(g->config), g->special, SEQUENCE_OPEN, error))
            return false;
    }
    return true;
}

// The numbers of an F32 or BF16 tensor.
static const float *read_floats(Generator *g, const Tensor *x) {
    size_t count = (size_t)tensor_count(x);
    float *values = arena_allocate(g->memory, count * sizeof *values);
    if (x->dtype == F32) {
        tape_read(g->tape, x, values);
        return values;
    }
    uint16_t *halves = arena_allocate(g->memory, count * sizeof *halves);
    tape_read(g->tape, x, halves);
    for (size_t i = 0; i < count; i++) values[i] = bf16_to_f32(halves[i]);
    return values;
}

// Chooses each row's token number `step` from hidden (R, T, C) at its last position.
static bool choose(Generator *g, Group *group, Tensor *hidden, int64_t step, Error *error) {
    int64_t vocabulary = g->config->text.vocabulary, length = hidden ? hidden->shape[1] : 1;
    int32_t *last = arena_array(g->memory, int32_t, group->rows);
    for (int r = 0; r < group->rows; r++) last[r] = (int32_t)(r * length + length - 1);
    Tensor *rows = gather_rows(g->tape, hidden, tape_constant(g->tape, I32, SHAPE(group->rows), last)); // (R, C)
    Tensor *logits = joint_logits(g->tape, g->joint, rows);                                             // (R, V)
    if (!tape_ok(g->tape, error)) return false;
    const float *values = read_floats(g, logits);
    Candidate *scratch = arena_allocate(g->memory, sizeof(Candidate) * (size_t)vocabulary);
    for (int r = 0; r < group->rows; r++) {
        const Prompt *p = &g->prompts[group->members[r]];
        int32_t id = sample_token(&g->options->sampling, values + r * vocabulary, vocabulary, p->number, (uint64_t)step,
                                  scratch);
        if (id < 0) return error_set(error, ERROR_FAILED, "generating: the model's scores are not numbers");
        group->next[r] = id;
        if (id == g->special.end) group->finished[r] = true;
        if (!group->finished[r]) token_ids_push(&g->out[group->members[r]], id);
    }
    return true;
}

static bool all_finished(const Group *group) {
    for (int r = 0; r < group->rows; r++)
        if (!group->finished[r]) return false;
    return true;
}

// Runs the chosen tokens, all at `position`. Finished rows run on unheard, so that the others keep their places.
static Tensor *advance(Generator *g, const Group *group, int position) {
    Sequences one;
    sequences_new(&one, g->memory, group->rows, 1, g->special);
    for (int r = 0; r < group->rows; r++) {
        one.tokens[r] = group->next[r];
        one.positions[r] = position;
        one.range[2 * r + 1] = position + 1;
    }
    return joint_hidden(g->tape, g->joint, &one, NULL, &(BlockContext){.cache = group->cache});
}

static bool run_group(Generator *g, Group *group, Error *error) {
    Sequences rows;
    arena_reset(g->memory);
    tape_reset(g->tape);
    if (!group_rows(g, group, &rows, error)) return false;
    group->next = arena_array(g->memory, int32_t, group->rows);
    group->finished = arena_array(g->memory, bool, group->rows);
    group->cache =
        text_cache_new(tape_backend(g->tape), joint_text(g->joint), group->rows, group->length + group->most);
    Tensor *images = group_images(g, group);
    Tensor *hidden = joint_hidden(g->tape, g->joint, &rows, images, &(BlockContext){.cache = group->cache});
    ArenaMark mark = arena_mark(g->memory);
    bool ok = choose(g, group, hidden, 0, error);
    for (int64_t step = 1; ok && step < group->most && !all_finished(group); step++) {
        arena_rewind(g->memory, mark);
        tape_reset(g->tape);
        ok = choose(g, group, advance(g, group, group->length + (int)step - 1), step, error);
    }
    kv_cache_free(group->cache);
    return ok;
}

typedef struct Order {
    int64_t length;
    int index;
} Order;

static int by_length(const void *a, const void *b) {
    const Order *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static bool run_groups(Generator *g, const Order *order, int *members, int count, Error *error) {
    int64_t context = g->config->text.context;
    for (int first = 0, rows; first < count; first += rows) {
        int64_t length = order[first].length;
        if (length > context)
            return error_set(error, ERROR_USAGE,
                             "prompt %d takes %lld positions, the model's context is %lld; shorten it",
                             order[first].index + 1, (long long)length, (long long)context);
        for (rows = 0; first + rows < count && rows < g->options->batch && order[first + rows].length == length; rows++)
            members[rows] = order[first + rows].index;
        int64_t room = context - length + 1; // the last token is never run
        Group group = {.members = members, .rows = rows, .length = (int)length};
        group.most = g->options->max_tokens < room ? g->options->max_tokens : room;
        if (!run_group(g, &group, error)) return false;
    }
    return true;
}

bool generate(Tape *tape, Joint *joint, const Tokenizer *tokenizer, const Prompt *prompts, int count,
              const GenerateOptions *options, TokenIds *out, Error *error) {
    const char *wrong = sampling_check(&options->sampling);
    if (wrong) return error_set(error, ERROR_USAGE, "%s", wrong);
    check(!tape_recording(tape) && options->batch > 0 && options->max_tokens > 0);
    const JointConfig *config = joint_config(joint);
    Order *order = calloc((size_t)count + 1, sizeof *order);
    int *members = calloc((size_t)count + 1, sizeof *members);
    check(order && members);
    bool ok = true;
    for (int i = 0; i < count; i++) {
        order[i] = (Order){prompt_length(config, &prompts[i]), i};
        if (prompts[i].images && !joint_has(joint, OBJECTIVE_CAPTION))
            ok = error_set(error, ERROR_USAGE,
                           "the model was not trained to speak of images (its caption weight is 0); leave them out");
    }
    qsort(order, (size_t)count, sizeof *order, by_length);
    Generator g = {tape, joint, config, options, sequence_ids(tokenizer), arena_new(1 << 20), prompts, out};
    ok = ok && run_groups(&g, order, members, count, error);
    arena_free(g.memory);
    free(order);
    free(members);
    return ok;
}
