/* See bench_generate.h. A model of random weights speaks as fast as a trained one; that a text ends is left out. */
#include "train/bench_generate.h"
#include "base/clock.h"
#include "fusion/generate.h"
#include "kernels/bench_ops.h"
#include <stdlib.h>
#include <string.h>

typedef struct Bench {
    const BenchGenerateOptions *options;
    BenchPreset preset;
    Backend *backend;
    Joint *joint;
    Tape *tape;
    Arena *memory;
    Prompt *prompts; // (batch)
} Bench;

static void draw_prompts(Bench *b) {
    const BenchGenerateOptions *o = b->options;
    int64_t words = b->preset.text.vocabulary;
    b->prompts = arena_array(b->memory, Prompt, o->batch);
    for (int i = 0; i < o->batch; i++) {
        int32_t *ids = arena_array(b->memory, int32_t, o->prompt);
        Segment *segment = arena_array(b->memory, Segment, 1);
        Rng rng = rng_for(1, PURPOSE_TEST, (uint64_t)i);
        for (int64_t k = 0; k < o->prompt; k++) ids[k] = (int32_t)rng_below(&rng, (uint64_t)words);
        *segment = (Segment){.image = -1, .ids = ids, .count = (int)o->prompt - 1}; // behind the mark of the beginning
        b->prompts[i] = (Prompt){.segments = segment, .count = 1, .number = (uint64_t)i};
    }
}

static bool open_bench(Bench *b, Log *log, Error *error) {
    const BenchGenerateOptions *o = b->options;
    if (!bench_preset(&b->preset, o->preset, error)) return false;
    if (o->shrink) bench_preset_shrink(&b->preset);
    if (b->preset.kind != BENCH_LANGUAGE)
        return error_set(error, ERROR_USAGE, "preset '%s' is no language model", o->preset);
    if (o->prompt < 1 || o->tokens < 1 || o->prompt + o->tokens > b->preset.text.context + 1)
        return error_set(error, ERROR_USAGE, "%lld tokens behind a prompt of %lld do not fit into a context of %lld",
                         (long long)o->tokens, (long long)o->prompt, (long long)b->preset.text.context);
    b->backend = device_backend_new(&(DeviceOptions){.device = o->device, .threads = o->threads}, log, error);
    if (!b->backend) return false;
    JointConfig config = {.text = b->preset.text, .weight = {[OBJECTIVE_LM] = 1}};
    b->joint = joint_new(b->backend, &config, NULL, o->precision, 1, error);
    if (!b->joint) return false;
    b->tape = tape_new(b->backend, false);
    b->memory = arena_new(1 << 16);
    draw_prompts(b);
    return true;
}

static void close_bench(Bench *b) {
    arena_free(b->memory);
    tape_free(b->tape);
    joint_free(b->joint);
    backend_free(b->backend);
}

// Seconds of one generation; negative where it failed.
static double speak(Bench *b, Error *error) {
    const BenchGenerateOptions *o = b->options;
    GenerateOptions options = {
        .sampling = {.temperature = o->temperature, .top_p = 1}, .max_tokens = o->tokens, .batch = o->batch};
    TokenIds *said = calloc((size_t)o->batch, sizeof *said);
    check(said);
    double start = clock_seconds();
    bool ok = generate_words(b->tape, b->joint, (SequenceIds){.pad = 0, .begin = 1, .end = -1}, b->prompts, o->batch,
                             &options, said, error);
    b->backend->wait(b->backend);
    double seconds = clock_seconds() - start;
    for (int i = 0; i < o->batch; i++) {
        if (ok && said[i].count != o->tokens)
            ok = error_set(error, ERROR_FAILED, "text %d has %d tokens, not %lld", i, said[i].count,
                           (long long)o->tokens);
        token_ids_free(&said[i]);
    }
    free(said);
    return ok ? seconds : -1;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Learned positions and embedded words are read row by row, which is next to nothing; tied words are read as the head.
static double bytes_of_token(const Bench *b) {
    const BenchGenerateOptions *o = b->options;
    const TextConfig *c = &b->preset.text;
    double size = (double)dtype_size(o->precision), before = (double)o->prompt + (double)(o->tokens - 1) / 2;
    double weights = text_weights(c, NULL) - (c->rope ? 0 : (double)c->context * (double)c->width);
    if (!c->tied) weights -= (double)c->vocabulary * (double)c->width;
    double kv = 2 * (double)c->width * (c->kv_heads ? (double)c->kv_heads / (double)c->heads : 1);
    return size * (weights + (double)o->batch * (double)c->layers * before * kv);
}

bool bench_generate(const BenchGenerateOptions *o, BenchGenerateResult *out, Log *log, Error *error) {
    Bench b = {.options = o};
    int rounds = o->rounds > 0 ? o->rounds : 1;
    double *seconds = calloc((size_t)rounds, sizeof *seconds);
    check(seconds);
    bool ok = open_bench(&b, log, error) && speak(&b, error) >= 0;
    for (int i = 0; ok && i < rounds; i++) ok = (seconds[i] = speak(&b, error)) >= 0;
    if (ok) {
        qsort(seconds, (size_t)rounds, sizeof *seconds, by_value);
        double median = seconds[rounds / 2], copy = o->shrink ? 1 : bench_peak(b.backend, 0.1).copy;
        *out = (BenchGenerateResult){.seconds = median,
                                     .per_second = (double)o->batch * (double)o->tokens / median,
                                     .bytes = bytes_of_token(&b),
                                     .copy_gbytes = copy,
                                     .parameters = (double)parameters_elements(joint_parameters(b.joint), false)};
        out->share = out->bytes * (double)o->tokens / median / (copy * 1e9);
    }
    close_bench(&b);
    free(seconds);
    return ok;
}
