/* See generate.h. What differs from token to token (positions, slots, ranges, the number of the draw) lies on the
 * device, where each choice moves it on: to the device every token is the same work, and the host only reads what was
 * said. R rows of a group, P positions of the longest prompt, V vocabulary, C width, K slots of an image, S side. */
#include "fusion/generate.h"
#include "fusion/joint_parts.h"
#include <stdlib.h>
#include <string.h>

// Device memory that the model keeps from call to call: a GPU's graphs hold where it lies.
struct GenerateMemory {
    Backend *backend;
    KvCache *cache;
    void *words; // of WordRows
    size_t bytes;
};

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

// Where the host reads beside the device's work, it does so for so many tokens at once, and the device is at most
// twice as many ahead: what it does behind a text's end is in vain. Else each token is read as it comes.
enum { READ_TOGETHER = 4 };

typedef struct Group {  // prompts that run together
    const int *members; // (rows) indices of prompts
    const int *lengths; // (rows) of them
    int rows, length;   // length: the longest
    int64_t most;       // new tokens of any of them
    KvCache *cache;
    WordRows speech;
    int32_t *said;  // (kept, rows) on the host
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

// Tokens that row r of a group may still make; the last one is never run.
static int64_t row_room(const Generator *g, const Group *group, int r) {
    int64_t room = g->config->text.context - group->lengths[r] + 1;
    return g->options->max_tokens < room ? g->options->max_tokens : room;
}

// ---- one token of each row ----

// (R, T, C) -> (R, V) at the last position
static Tensor *last_logits(Generator *g, const Group *group, Tensor *hidden) {
    int64_t length = hidden ? hidden->shape[1] : 1, width = hidden ? hidden->shape[2] : 0;
    if (length == 1) return joint_logits(g->tape, g->joint, tape_reshape(g->tape, hidden, SHAPE(group->rows, width)));
    int32_t *last = arena_array(g->memory, int32_t, group->rows);
    for (int r = 0; r < group->rows; r++) last[r] = (int32_t)(r * length + group->lengths[r] - 1);
    Tensor *rows = gather_rows(g->tape, hidden, tape_constant(g->tape, I32, SHAPE(group->rows), last)); // (R, C)
    return joint_logits(g->tape, g->joint, rows);
}

// Whether the host reads what was said behind token number `step`.
static bool reads_behind(const Group *group, int64_t step) {
    return (step + 1) % group->speech.kept == 0 || step + 1 == group->most;
}

// Chooses each row's token number `step` from hidden (R, T, C); NULL: what was said is read later.
static BackendRead *choose_tokens(Generator *g, Group *group, Tensor *hidden, int64_t step) {
    Backend *b = tape_backend(g->tape);
    Tensor *logits = last_logits(g, group, hidden);
    if (tape_error(g->tape)) return NULL;
    b->choose_words(b, &group->speech, logits->data, group->rows, g->config->text.vocabulary, logits->dtype);
    if (!reads_behind(group, step)) return NULL;
    return backend_read_start(b, group->speech.said, (size_t)(group->speech.kept * group->rows) * sizeof(int32_t));
}

static Tensor device_numbers(const char *name, int32_t *data, int rank, const int64_t *shape) {
    Tensor t = {.rank = rank, .dtype = I32, .borrowed = true, .name = name, .data = data};
    memcpy(t.shape, shape, sizeof *shape * (size_t)rank);
    return t;
}

// Runs the tokens chosen last and chooses number `step`. Rows at their end run on unheard and see nothing.
static BackendRead *next_tokens(Generator *g, Group *group, int64_t step) {
    Tape *t = g->tape;
    const WordRows *s = &group->speech;
    const Text *text = joint_text(g->joint);
    Tensor ids = device_numbers("tokens", s->next, SHAPE(group->rows, 1));
    Tensor positions = device_numbers("positions", s->positions, SHAPE(group->rows));
    Tensor range = device_numbers("range", s->range, SHAPE(group->rows, 1, 2));
    Tensor slots = device_numbers("slots", s->slots, SHAPE(group->rows));
    BlockContext context = {.cache = group->cache, .positions = &positions, .range = &range, .slots = &slots};
    backend_sequence_begin(tape_backend(t), "token");
    tape_reset(t);
    BackendRead *read = choose_tokens(g, group, text_forward(t, text, text_embed(t, text, &ids), &context), step);
    backend_sequence_end(tape_backend(t));
    return read;
}

// Tokens first .. last of each row, which lie in `said`.
static bool take_tokens(Generator *g, Group *group, int64_t first, int64_t last, Error *error) {
    for (int64_t step = first; step <= last; step++) {
        const int32_t *ids = group->said + step % group->speech.kept * group->rows;
        for (int r = 0; r < group->rows; r++) {
            if (group->finished[r]) continue;
            if (ids[r] < 0) return error_set(error, ERROR_FAILED, "generating: the model's scores are not numbers");
            group->finished[r] = ids[r] == g->special.end;
            if (!group->finished[r]) token_ids_push(&g->out[group->members[r]], ids[r]);
            if (step + 1 >= row_room(g, group, r)) group->finished[r] = true;
        }
    }
    return true;
}

static bool all_finished(const Group *group) {
    for (int r = 0; r < group->rows; r++)
        if (!group->finished[r]) return false;
    return true;
}

// ---- a group ----

// Starts tokens from *step on, up to the next read or the last token.
static BackendRead *run_ahead(Generator *g, Group *group, int64_t *step) {
    BackendRead *read = NULL;
    while (!read && *step < group->most && !tape_error(g->tape)) read = next_tokens(g, group, (*step)++);
    return read;
}

// A device that works beside the host gets further tokens' work before the host knows these.
static bool run_tokens(Generator *g, Group *group, BackendRead *read, Error *error) {
    Backend *b = tape_backend(g->tape);
    bool ahead = group->speech.kept > 1, ok = true;
    int64_t begun = 1, taken = 0; // tokens
    BackendRead *next = NULL;
    if (!read) read = run_ahead(g, group, &begun);
    while (ok && read) {
        int64_t there = begun;
        if (ahead) next = run_ahead(g, group, &begun);
        backend_read_finish(b, read, group->said);
        ok = tape_ok(g->tape, error) && take_tokens(g, group, taken, there - 1, error);
        taken = there;
        if (!ok || all_finished(group)) break;
        read = ahead ? next : run_ahead(g, group, &begun);
        next = NULL;
    }
    if (next) backend_read_finish(b, next, NULL);
    return ok && tape_ok(g->tape, error);
}

void generate_memory_free(GenerateMemory *m) {
    if (!m) return;
    kv_cache_free(m->cache);
    m->backend->release(m->backend, m->words, m->bytes);
    free(m);
}

// For groups of so many rows, and texts of so many positions.
static GenerateMemory *reach_memory(Generator *g, int64_t rows, int64_t capacity) {
    Backend *b = tape_backend(g->tape);
    GenerateMemory *m = g->joint->speech;
    if (m && m->cache->batch >= rows && m->cache->capacity >= capacity) return m;
    if (m && m->cache->batch > rows) rows = m->cache->batch;
    if (m && m->cache->capacity > capacity) capacity = m->cache->capacity;
    generate_memory_free(m);
    g->joint->speech = m = calloc(1, sizeof *m);
    check(m);
    m->backend = b;
    m->cache = text_cache_new(b, joint_text(g->joint), rows, capacity);
    m->bytes = (size_t)rows * (sizeof(WordDraw) + (6 + READ_TOGETHER) * sizeof(int32_t));
    m->words = b->allocate(b, m->bytes);
    check(m->words);
    return m;
}

// Every row stands at the last position of its prompt.
static void speech_begin(Generator *g, Group *group, WordDraw *device) {
    Backend *b = tape_backend(g->tape);
    int rows = group->rows, kept = b->read_start ? READ_TOGETHER : 1;
    size_t numbers = (size_t)rows * (6 + (size_t)kept);
    size_t bytes = sizeof(WordDraw) * (size_t)rows + numbers * sizeof(int32_t);
    WordDraw *host = arena_allocate(g->memory, bytes);
    int32_t *from = (int32_t *)(void *)(host + rows), *to = (int32_t *)(void *)(device + rows);
    memset(from, 0, numbers * sizeof *from);
    for (int r = 0; r < rows; r++) {
        int last = group->lengths[r] - 1;
        host[r] = sampling_draw(&g->options->sampling, g->prompts[group->members[r]].number, row_room(g, group, r));
        from[r] = last;                                                // position
        from[rows + r] = (int32_t)(r * group->cache->capacity + last); // slot
        from[2 * rows + 2 * r + 1] = last + 1;                         // range
    }
    b->upload(b, device, host, bytes);
    group->speech = (WordRows){.draws = device,
                               .positions = to,
                               .slots = to + rows,
                               .range = to + 2 * rows,
                               .step = to + 4 * rows,
                               .next = to + 5 * rows,
                               .said = to + 6 * rows,
                               .kept = kept,
                               .end = g->special.end};
}

static bool run_group(Generator *g, Group *group, GenerateMemory *memory, Error *error) {
    Sequences rows;
    Backend *b = tape_backend(g->tape);
    arena_reset(g->memory);
    if (!group_rows(g, group, &rows, error)) return false;
    group->finished = arena_array(g->memory, bool, group->rows);
    group->cache = memory->cache;
    kv_cache_begin(group->cache, group->rows);
    backend_sequence_begin(b, "prompt");
    tape_reset(g->tape);
    speech_begin(g, group, memory->words);
    group->said = arena_array(g->memory, int32_t, group->rows * group->speech.kept);
    Tensor *images = group_images(g, group);
    Tensor *hidden = joint_hidden(g->tape, g->joint, &rows, images, &(BlockContext){.cache = group->cache});
    BackendRead *read = choose_tokens(g, group, hidden, 0);
    backend_sequence_end(b);
    bool ok = run_tokens(g, group, read, error);
    b->wait(b);
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

// Prompts in the order of their length; members and lengths: (count) each, for the groups.
static bool run_groups(Generator *g, const Order *order, int *members, int *lengths, int count, Error *error) {
    int64_t context = g->config->text.context, batch = g->options->batch, longest = count ? order[count - 1].length : 0;
    if (longest > context)
        return error_set(error, ERROR_USAGE, "prompt %d takes %lld positions, the model's context is %lld; shorten it",
                         order[count - 1].index + 1, (long long)longest, (long long)context);
    int64_t capacity = longest + g->options->max_tokens;
    GenerateMemory *memory =
        count ? reach_memory(g, batch < count ? batch : count, capacity < context ? capacity : context) : NULL;
    for (int i = 0; i < count; i++) members[i] = order[i].index, lengths[i] = (int)order[i].length;
    for (int first = 0, rows; first < count; first += rows) {
        rows = (int)(count - first < batch ? count - first : batch);
        Group group = {.members = members + first, .lengths = lengths + first, .rows = rows};
        group.length = group.lengths[rows - 1];
        group.most = row_room(g, &group, 0); // the shortest
        if (!run_group(g, &group, memory, error)) return false;
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
    int *members = calloc(2 * (size_t)count + 1, sizeof *members); // of a group, and their lengths
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
    ok = ok && run_groups(&g, order, members, members + count, count, error);
    arena_free(g.memory);
    free(order);
    free(members);
    return ok;
}

bool generate(Tape *tape, Joint *joint, const Tokenizer *tokenizer, const Prompt *prompts, int count,
              const GenerateOptions *options, TokenIds *out, Error *error) {
    return generate_words(tape, joint, sequence_ids(tokenizer), prompts, count, options, out, error);
}
