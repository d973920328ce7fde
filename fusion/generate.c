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
    Tensor next;    // (rows) I32, device: the tokens chosen last
    int32_t *ids;   // (rows) the same on the host
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
    return joint_image_tokens_forward(g->tape, g->joint, joint_pixels(g->tape, g->joint, pixels, NULL, (int)images));
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

static bool greedy(const Generator *g) { return g->options->sampling.temperature == 0; }

// ---- one token of each row ----

// (R, T, C) -> (R, V) at the last position
static Tensor *last_logits(Generator *g, const Group *group, Tensor *hidden) {
    int64_t length = hidden ? hidden->shape[1] : 1, width = hidden ? hidden->shape[2] : 0;
    if (length == 1) return joint_logits(g->tape, g->joint, tape_reshape(g->tape, hidden, SHAPE(group->rows, width)));
    int32_t *last = arena_array(g->memory, int32_t, group->rows);
    for (int r = 0; r < group->rows; r++) last[r] = (int32_t)(r * length + length - 1);
    Tensor *rows = gather_rows(g->tape, hidden, tape_constant(g->tape, I32, SHAPE(group->rows), last)); // (R, C)
    return joint_logits(g->tape, g->joint, rows);
}

// By lot, on the host: token number `step` of each row.
static void draw_tokens(Generator *g, Group *group, const Tensor *logits, int64_t step) {
    int64_t vocabulary = g->config->text.vocabulary;
    const float *values = read_floats(g, logits);
    Candidate *scratch = arena_allocate(g->memory, sizeof(Candidate) * (size_t)vocabulary);
    for (int r = 0; r < group->rows; r++)
        group->ids[r] = sample_token(&g->options->sampling, values + r * vocabulary, vocabulary,
                                     g->prompts[group->members[r]].number, (uint64_t)step, scratch);
    Backend *b = tape_backend(g->tape);
    b->upload(b, group->next.data, group->ids, tensor_bytes(&group->next));
}

// Chooses each row's token number `step` from hidden (R, T, C); what comes back is read by take_tokens.
static BackendRead *choose_tokens(Generator *g, Group *group, Tensor *hidden, int64_t step) {
    Backend *b = tape_backend(g->tape);
    Tensor *logits = last_logits(g, group, hidden);
    if (tape_error(g->tape)) return NULL;
    if (!greedy(g)) return draw_tokens(g, group, logits, step), NULL;
    b->argmax_rows(b, group->next.data, logits->data, group->rows, g->config->text.vocabulary, logits->dtype);
    return backend_read_start(b, group->next.data, tensor_bytes(&group->next));
}

static bool take_tokens(Generator *g, Group *group, BackendRead *read, Error *error) {
    if (read) backend_read_finish(tape_backend(g->tape), read, group->ids);
    if (!tape_ok(g->tape, error)) return false;
    for (int r = 0; r < group->rows; r++) {
        int32_t id = group->ids[r];
        if (id < 0) return error_set(error, ERROR_FAILED, "generating: the model's scores are not numbers");
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

// Runs the tokens chosen last, all at `position`, and chooses the next. Finished rows run on unheard, so that the
// others keep their places. All that differs from token to token is data: to the device every token is the same work.
static BackendRead *next_tokens(Generator *g, Group *group, int64_t step) {
    Tape *t = g->tape;
    int rows = group->rows, position = group->length + (int)step - 1;
    int32_t *positions = arena_array(g->memory, int32_t, rows), *range = arena_array(g->memory, int32_t, 2 * rows);
    for (int r = 0; r < rows; r++) positions[r] = position, range[2 * r] = 0, range[2 * r + 1] = position + 1;
    backend_sequence_begin(tape_backend(t), "token");
    tape_reset(t);
    BlockContext context = {.cache = group->cache,
                            .positions = tape_constant(t, I32, SHAPE(rows), positions),
                            .range = tape_constant(t, I32, SHAPE(rows, 1, 2), range)};
    Tensor *ids = tape_reshape(t, &group->next, SHAPE(rows, 1));
    const Text *text = joint_text(g->joint);
    BackendRead *read = choose_tokens(g, group, text_forward(t, text, text_embed(t, text, ids), &context), step);
    backend_sequence_end(tape_backend(t));
    return read;
}

// ---- a group ----

// A device that works beside the host gets the next token's work before the host knows this one: the last of it may be
// in vain. Draws on the host cannot be ahead.
static bool run_tokens(Generator *g, Group *group, Tensor *hidden, Error *error) {
    Backend *b = tape_backend(g->tape);
    bool ahead = greedy(g) && b->read_start, ok = true;
    ArenaMark mark = arena_mark(g->memory);
    BackendRead *read = choose_tokens(g, group, hidden, 0), *next = NULL;
    for (int64_t step = 1; ok; step++) {
        bool more = step < group->most;
        arena_rewind(g->memory, mark);
        if (ahead && more && !tape_error(g->tape)) next = next_tokens(g, group, step);
        ok = take_tokens(g, group, read, error);
        if (!ok || !more || all_finished(group)) break;
        read = ahead ? next : next_tokens(g, group, step);
        next = NULL;
    }
    if (next) backend_read_finish(b, next, NULL);
    return ok;
}

static void group_open(Generator *g, Group *group) {
    Backend *b = tape_backend(g->tape);
    group->ids = arena_array(g->memory, int32_t, group->rows);
    group->finished = arena_array(g->memory, bool, group->rows);
    group->cache = text_cache_new(b, joint_text(g->joint), group->rows, group->length + group->most);
    group->next = (Tensor){.rank = 1, .dtype = I32, .shape = {group->rows}, .borrowed = true, .name = "tokens"};
    group->next.data = b->allocate(b, tensor_bytes(&group->next));
    check(group->next.data);
}

static bool run_group(Generator *g, Group *group, Error *error) {
    Sequences rows;
    arena_reset(g->memory);
    tape_reset(g->tape);
    if (!group_rows(g, group, &rows, error)) return false;
    group_open(g, group);
    Tensor *images = group_images(g, group);
    Tensor *hidden = joint_hidden(g->tape, g->joint, &rows, images, &(BlockContext){.cache = group->cache});
    bool ok = run_tokens(g, group, hidden, error);
    Backend *b = tape_backend(g->tape);
    b->wait(b);
    b->release(b, group->next.data, tensor_bytes(&group->next));
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

bool generate_words(Tape *tape, Joint *joint, SequenceIds special, const Prompt *prompts, int count,
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
    Generator g = {tape, joint, config, options, special, arena_new(1 << 20), prompts, out};
    ok = ok && run_groups(&g, order, members, count, error);
    arena_free(g.memory);
    free(order);
    free(members);
    return ok;
}

bool generate(Tape *tape, Joint *joint, const Tokenizer *tokenizer, const Prompt *prompts, int count,
              const GenerateOptions *options, TokenIds *out, Error *error) {
    return generate_words(tape, joint, sequence_ids(tokenizer), prompts, count, options, out, error);
}
