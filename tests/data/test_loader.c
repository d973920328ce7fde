/* The loader: a batch is a pure function of data, seed and step, and nothing is lost, repeated or paired wrongly. */
#include "base/files.h"
#include "base/philox.h"
#include "data/loader_order.h"
#include "tests/data/tiny_dataset.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LM = 1 << OBJECTIVE_LM, CAPTION = 1 << OBJECTIVE_CAPTION, SAMPLES = 23, SIDE = 8, SLOTS = 2 };
enum { CONTRASTIVE = 1 << OBJECTIVE_CONTRASTIVE, MAE = 1 << OBJECTIVE_MAE, PICTURES = CAPTION | CONTRASTIVE | MAE };

typedef struct Fixture {
    char *folder, *pictures, *pairs, *damaged, *texts; // datasets
    Tokenizer *tokenizer;
} Fixture;

static SourceConfig source(const char *path, unsigned objectives, int64_t batch) {
    return (SourceConfig){.path = path,
                          .validation = path,
                          .objectives = objectives,
                          .batch = batch,
                          .text = "",
                          .question = "",
                          .answer = "",
                          .one_per = "",
                          .documents = true,
                          .crop_scale = {1, 1},
                          .crop_ratio = {0.75, 4.0 / 3}};
}

static LoaderConfig config(const SourceConfig *sources, int count) {
    return (LoaderConfig){.sources = sources,
                          .source_count = count,
                          .side = SIDE,
                          .image_tokens = SLOTS,
                          .text_length = 16,
                          .caption_length = 32,
                          .contrastive_length = 26,
                          .background = {255, 255, 255},
                          .seed = 7,
                          .threads = 1,
                          .ahead = 2,
                          .bad_samples_per_million = 1e6};
}

static Loader *open_loader(const Fixture *f, const LoaderConfig *c) {
    Error error;
    Loader *loader = loader_open(c, f->tokenizer, NULL, &error);
    assert_done(loader != NULL, &error);
    return loader;
}

static const Batch *next(Loader *loader, int64_t step) {
    Error error;
    const Batch *batch = loader_next(loader, step, &error);
    assert_done(batch != NULL, &error);
    assert_int_equal(batch->step, step);
    return batch;
}

static uint64_t mixed(uint64_t sum, const void *bytes, size_t size) {
    const uint64_t words[2] = {sum, size ? hash_u64(bytes, size) : 0};
    return hash_u64(words, sizeof words);
}

static uint64_t sequences_hash(uint64_t sum, const Sequences *s) {
    size_t cells = (size_t)s->rows * (size_t)s->length * sizeof(int32_t);
    const int64_t counts[4] = {s->rows, s->length, s->target_count, s->token_count};
    const int32_t *arrays[4] = {s->tokens, s->targets, s->positions, s->image_rows};
    sum = mixed(sum, counts, sizeof counts);
    for (int i = 0; i < 4; i++) sum = mixed(sum, arrays[i], cells);
    return mixed(mixed(sum, s->range, 2 * cells), s->ends, (size_t)s->rows * sizeof(int32_t));
}

// Of everything in a batch.
static uint64_t batch_hash(const Batch *b) {
    uint64_t sum = mixed((uint64_t)b->step, b->pixels, (size_t)b->images * SIDE * SIDE * 3);
    sum = mixed(sum, b->image_keys, (size_t)b->images * sizeof *b->image_keys);
    sum = mixed(sum, b->mirrored, (size_t)b->images);
    sum = mixed(sum, b->contrastive_image, (size_t)b->contrastive.rows * sizeof(int32_t));
    sum = mixed(sum, b->mae_image, (size_t)b->mae_images * sizeof(int32_t));
    sum = mixed(sum, b->first_row, sizeof b->first_row);
    for (int i = 0; i < b->images; i++) sum = mixed(sum, b->image_sources[i], strlen(b->image_sources[i]));
    return sequences_hash(sequences_hash(sequences_hash(sum, &b->lm), &b->caption), &b->contrastive);
}

enum { STEPS = 9 };

// All objectives from several sources, with everything drawn that can be.
static void hash_steps(const Fixture *f, int threads, int64_t cache, uint64_t seed, uint64_t hashes[STEPS]) {
    SourceConfig sources[] = {source(f->pictures, PICTURES, 5), source(f->texts, LM, 3), source(f->pairs, CAPTION, 2),
                              source(f->damaged, PICTURES, 4), source(f->texts, LM, 2)};
    sources[0].crop_scale[0] = 0.3;
    sources[0].flip = 0.5;
    sources[0].text = "{class}||{question}||{answer}";
    sources[4].documents = false;
    LoaderConfig c = config(sources, 5);
    c.threads = threads;
    c.cache_bytes = cache;
    c.seed = seed;
    Loader *loader = open_loader(f, &c);
    for (int64_t step = 0; step < STEPS; step++) hashes[step] = batch_hash(next(loader, step));
    loader_close(loader);
}

static void batches_do_not_depend_on_the_number_of_threads(void **state) {
    uint64_t one[STEPS], several[STEPS];
    hash_steps(*state, 1, 0, 7, one);
    for (int threads = 2; threads <= 5; threads += 3) {
        hash_steps(*state, threads, 0, 7, several);
        assert_memory_equal(one, several, sizeof one);
    }
}

static void the_cache_changes_nothing(void **state) {
    uint64_t without[STEPS], with[STEPS];
    hash_steps(*state, 2, 0, 7, without);
    for (int64_t bytes = 5000; bytes <= 500000000; bytes *= 100000) {
        hash_steps(*state, 2, bytes, 7, with);
        assert_memory_equal(without, with, sizeof with);
    }
}

static void another_seed_gives_other_batches(void **state) {
    uint64_t one[STEPS], other[STEPS];
    hash_steps(*state, 1, 0, 7, one);
    hash_steps(*state, 1, 0, 8, other);
    for (int i = 0; i < STEPS; i++) assert_true(one[i] != other[i]);
}

static void any_step_can_be_asked_for(void **state) {
    static const int64_t order[] = {6, 7, 2, 2, 0, 8, 1, 6};
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, PICTURES, 5);
    s.crop_scale[0] = 0.5;
    LoaderConfig c = config(&s, 1);
    c.threads = 2;
    uint64_t in_order[STEPS];
    Loader *loader = open_loader(f, &c);
    for (int64_t step = 0; step < STEPS; step++) in_order[step] = batch_hash(next(loader, step));
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        assert_true(batch_hash(next(loader, order[i])) == in_order[order[i]]);
    loader_close(loader);
}

// The number in "tiny/000000012".
static int sample_of(const Batch *b, int image) { return atoi(strrchr(b->image_sources[image], '/') + 1); }

static void an_epoch_has_every_sample_once_and_the_next_another_order(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, MAE, SAMPLES);
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    int order[2][SAMPLES], seen[SAMPLES] = {0};
    assert_int_equal(loader_steps_per_epoch(loader), 1);
    for (int epoch = 0; epoch < 2; epoch++) {
        const Batch *b = next(loader, epoch);
        assert_int_equal(b->images, SAMPLES);
        for (int i = 0; i < SAMPLES; i++) seen[order[epoch][i] = sample_of(b, i)]++;
    }
    for (int i = 0; i < SAMPLES; i++) assert_int_equal(seen[i], 2);
    assert_memory_not_equal(order[0], order[1], sizeof order[0]);
    loader_close(loader);
}

// Text of a caption row behind its slots.
static void decode_row(const Fixture *f, const Sequences *s, int row, Buffer *text) {
    TokenIds ids = {0};
    Error error;
    for (int t = 0; t < s->length; t++)
        if (s->tokens[row * s->length + t] >= 0) token_ids_push(&ids, s->tokens[row * s->length + t]);
    buffer_clear(text);
    assert_done(tokenizer_decode(f->tokenizer, ids.ids, ids.count, text, &error), &error);
    token_ids_free(&ids);
}

static void pictures_and_texts_stay_together(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, PICTURES, 4);
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    Buffer text = {0};
    for (int64_t step = 0; step < 8; step++) {
        const Batch *b = next(loader, step);
        assert_int_equal(b->images, 4);
        assert_int_equal(b->mae_images, 4);
        for (int i = 0; i < 4; i++) {
            char wanted[64];
            int sample = sample_of(b, i);
            snprintf(wanted, sizeof wanted, "caption of picture %d", sample);
            assert_int_equal(b->contrastive_image[i], i);
            assert_int_equal(b->caption.image_rows[i * b->caption.length], i * SLOTS);
            decode_row(f, &b->caption, i, &text);
            assert_string_equal(text.data, wanted);
            decode_row(f, &b->contrastive, i, &text);
            assert_string_equal(text.data, wanted);
            int red = b->pixels[(size_t)i * SIDE * SIDE * 3 + SIDE * 3 + 3];
            assert_true(abs(red - tiny_colour(sample)) <= 2);
        }
    }
    buffer_free(&text);
    loader_close(loader);
}

static void several_pictures_of_a_sample_get_slots_each(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pairs, CAPTION | CONTRASTIVE | MAE, 2);
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    const Batch *b = next(loader, 0);
    assert_int_equal(b->images, 4);
    assert_int_equal(b->mae_images, 4);
    assert_int_equal(b->contrastive_image[1], 2);
    for (int t = 0; t < 2 * SLOTS; t++) assert_int_equal(b->caption.image_rows[b->caption.length + t], 2 * SLOTS + t);
    assert_true(b->image_keys[0] != b->image_keys[1]);
    loader_close(loader);
}

static void only_answers_are_scored_where_there_are_questions(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, CAPTION, 3);
    s.question = "{question}? ";
    s.answer = "{answer}";
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    const Batch *b = next(loader, 0);
    Buffer text = {0};
    for (int i = 0; i < 3; i++) {
        char wanted[64], answer[32];
        int sample = sample_of(b, i), scored = 0;
        snprintf(answer, sizeof answer, "it is %d", sample);
        snprintf(wanted, sizeof wanted, "what is %d?%s", sample, answer);
        decode_row(f, &b->caption, i, &text);
        assert_non_null(strstr(text.data, answer));
        for (int t = 0; t < b->caption.length; t++) scored += b->caption.targets[i * b->caption.length + t] >= 0;
        assert_int_equal(scored, strlen(answer) + 1); // characters and </s>
    }
    buffer_free(&text);
    loader_close(loader);
}

static void one_per_takes_one_of_each_value(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, MAE, 5);
    s.one_per = "class";
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    int seen[SAMPLES] = {0};
    for (int64_t step = 0; step < 20; step++) { // 5 classes of 4 or 5: each sample 4 or 5 times
        const Batch *b = next(loader, step);
        int classes = 0;
        for (int i = 0; i < 5; i++) {
            classes |= 1 << sample_of(b, i) % 5;
            seen[sample_of(b, i)]++;
        }
        assert_int_equal(classes, 31);
    }
    for (int i = 0; i < SAMPLES; i++) assert_int_equal(seen[i], i % 5 < 3 ? 4 : 5);
    loader_close(loader);
    Error error;
    s.batch = 4;
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    assert_message_has(&error, "set batch to 5");
}

static void validation_goes_once_in_order_and_starts_again(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, PICTURES, 10);
    s.crop_scale[0] = 0.2;
    s.flip = 1;
    LoaderConfig c = config(&s, 1);
    c.validation = true;
    Loader *loader = open_loader(f, &c);
    uint64_t first[3];
    Error error;
    assert_int_equal(loader_steps_per_epoch(loader), 3);
    for (int pass = 0; pass < 2; pass++)
        for (int64_t step = 0; step < 3; step++) {
            const Batch *b = next(loader, step);
            assert_int_equal(b->images, step < 2 ? 10 : 3);
            for (int i = 0; i < b->images; i++) {
                assert_int_equal(sample_of(b, i), step * 10 + i);
                assert_int_equal(b->mirrored[i], 0);
            }
            if (pass == 0) first[step] = batch_hash(b);
            assert_true(first[step] == batch_hash(b));
        }
    assert_null(loader_next(loader, 3, &error));
    loader_close(loader);
}

static void damaged_samples_give_way_to_the_next_and_are_counted(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->damaged, PICTURES, SAMPLES);
    LoaderConfig c = config(&s, 1);
    char *path = temporary_path(f->folder, "log");
    FILE *stream = fopen(path, "w");
    Log *log = log_new(LOG_INFO, stream);
    Buffer said = {0};
    Error error;
    Loader *loader = loader_open(&c, f->tokenizer, log, &error);
    assert_done(loader != NULL, &error);
    for (int64_t step = 0; step < 2; step++) {
        const Batch *b = next(loader, step);
        assert_int_equal(b->images, SAMPLES);
        for (int i = 0; i < SAMPLES; i++) assert_true(sample_of(b, i) % 6 != 0);
    }
    assert_int_equal(loader_skipped(loader), 4); // 0, 6, 12, 18
    loader_close(loader);
    log_free(log);
    fclose(stream);
    assert_done(file_read(path, &said, &error), &error);
    assert_non_null(strstr(said.data, "damaged: shard-000000.tar"));
    assert_non_null(strstr(said.data, "4 samples could not be used"));
    buffer_free(&said);
    free(path);
}

static void too_many_damaged_samples_stop_the_run_at_the_same_step(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->damaged, PICTURES, 5);
    LoaderConfig c = config(&s, 1);
    int64_t stopped[2];
    Error error;
    c.bad_samples_per_million = 1000;
    for (int i = 0; i < 2; i++) {
        c.threads = 1 + 3 * i;
        Loader *loader = open_loader(f, &c);
        for (stopped[i] = 0; loader_next(loader, stopped[i], &error); stopped[i]++) assert_true(stopped[i] < 100);
        assert_message_has(&error, "per million");
        loader_close(loader);
    }
    assert_int_equal(stopped[0], stopped[1]);
    assert_true(stopped[0] > 0);
}

// Counts in an epoch of rows how often each text comes: by the number in it.
static void packed_texts_come_once_an_epoch_and_do_not_see_each_other(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->texts, LM, 1);
    LoaderConfig c = config(&s, 1);
    Loader *loader = open_loader(f, &c);
    int64_t rows = loader_steps_per_epoch(loader), tokens = 0, begins = 0, ends = 0, targets = 0;
    for (int64_t step = 0; step < rows; step++) {
        const Sequences *q = &next(loader, step)->lm;
        assert_int_equal(q->rows, 1);
        tokens += q->token_count;
        targets += q->target_count;
        for (int t = 0; t < q->token_count; t++) {
            bool begin = q->tokens[t] == tokenizer_begin(f->tokenizer);
            begins += begin;
            ends += q->tokens[t] == tokenizer_end(f->tokenizer);
            assert_int_equal(q->range[2 * t + 1], t + 1);
            assert_int_equal(q->range[2 * t], t - q->positions[t]);
            if (begin) assert_int_equal(q->positions[t], 0);
            if (q->targets[t] == TOKEN_NONE)
                assert_int_equal(q->tokens[t], tokenizer_end(f->tokenizer));
            else if (t + 1 < q->length)
                assert_int_equal(q->targets[t], q->tokens[t + 1]);
        }
    }
    assert_int_equal(begins, SAMPLES);
    assert_int_equal(ends, SAMPLES);
    assert_int_equal(targets, tokens - SAMPLES);
    assert_int_equal((tokens + 15) / 16, rows);
    loader_close(loader);
}

static void a_stream_in_validation_is_the_text_itself(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->texts, LM, 4);
    s.documents = false;
    LoaderConfig c = config(&s, 1);
    c.validation = true;
    Loader *loader = open_loader(f, &c);
    TokenIds ids = {0};
    Buffer text = {0}, wanted = {0};
    Error error;
    for (int64_t step = 0; step < loader_steps_per_epoch(loader); step++) {
        const Sequences *q = &next(loader, step)->lm;
        for (int i = 0; i < q->rows * q->length; i++) {
            if (q->range[2 * i + 1] == 0) continue;
            if (!ids.count) token_ids_push(&ids, q->tokens[i]);
            token_ids_push(&ids, q->targets[i]);
        }
    }
    assert_done(tokenizer_decode(f->tokenizer, ids.ids, ids.count, &text, &error), &error);
    for (int i = 0; i < SAMPLES; i++)
        buffer_printf(&wanted, "%stext %d of several words\nand two lines", i ? "\n" : "", i);
    assert_string_equal(text.data, wanted.data);
    token_ids_free(&ids);
    buffer_free(&text);
    buffer_free(&wanted);
    loader_close(loader);
}

static void the_order_is_a_permutation_whatever_the_count(void **state) {
    static const uint64_t counts[] = {1, 2, 100, ORDER_WINDOW, ORDER_WINDOW + 1, 3 * ORDER_WINDOW + 777};
    (void)state;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        Order order = {counts[c], 3, true};
        uint8_t *seen = calloc(counts[c], 1);
        for (uint64_t i = 0; i < counts[c]; i++) {
            uint64_t sample = order_sample(&order, c, i);
            assert_true(sample < counts[c]);
            assert_int_equal(seen[sample]++, 0);
        }
        free(seen);
    }
}

static void what_cannot_work_is_refused_when_it_is_opened(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, CAPTION, 2);
    LoaderConfig c = config(&s, 1);
    Error error;
    c.caption_length = SLOTS + 1;
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    assert_message_has(&error, "image slots");
    c = config(&s, 1);
    s.text = "{class";
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    assert_message_has(&error, "without }");
    s = source("/nowhere", CAPTION, 2);
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    s = source(f->pictures, CAPTION, 2);
    s.validation = "";
    c.validation = true;
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    assert_message_has(&error, "no source gives validation data");
}

static void a_field_that_is_never_there_is_found_at_the_start(void **state) {
    const Fixture *f = *state;
    SourceConfig s = source(f->pictures, CAPTION, 2);
    LoaderConfig c = config(&s, 1);
    Error error;
    s.text = "{nothing}";
    assert_null(loader_open(&c, f->tokenizer, NULL, &error));
    assert_int_equal(error.kind, ERROR_USAGE);
    assert_message_has(&error, "\"nothing\"");
}

static int set_up(void **state) {
    Fixture *f = calloc(1, sizeof *f);
    f->folder = temporary_new();
    f->pictures = tiny_dataset(&(TinyOptions){f->folder, "tiny", SAMPLES, 1, 0, false, 8192});
    f->pairs = tiny_dataset(&(TinyOptions){f->folder, "pairs", 7, 2, 0, false, 1 << 20});
    f->damaged = tiny_dataset(&(TinyOptions){f->folder, "damaged", SAMPLES, 1, 6, false, 1 << 20});
    f->texts = tiny_dataset(&(TinyOptions){f->folder, "texts", SAMPLES, 0, 0, true, 1 << 20});
    f->tokenizer = tiny_tokenizer();
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    Fixture *f = *state;
    tokenizer_free(f->tokenizer);
    free(f->pictures);
    free(f->pairs);
    free(f->damaged);
    free(f->texts);
    temporary_free(f->folder);
    free(f);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(the_cache_changes_nothing),
        cmocka_unit_test(another_seed_gives_other_batches),
        cmocka_unit_test(any_step_can_be_asked_for),
        cmocka_unit_test(an_epoch_has_every_sample_once_and_the_next_another_order),
        cmocka_unit_test(pictures_and_texts_stay_together),
        cmocka_unit_test(several_pictures_of_a_sample_get_slots_each),
        cmocka_unit_test(only_answers_are_scored_where_there_are_questions),
        cmocka_unit_test(one_per_takes_one_of_each_value),
        cmocka_unit_test(validation_goes_once_in_order_and_starts_again),
        cmocka_unit_test(damaged_samples_give_way_to_the_next_and_are_counted),
        cmocka_unit_test(too_many_damaged_samples_stop_the_run_at_the_same_step),
        cmocka_unit_test(packed_texts_come_once_an_epoch_and_do_not_see_each_other),
        cmocka_unit_test(a_stream_in_validation_is_the_text_itself),
        cmocka_unit_test(the_order_is_a_permutation_whatever_the_count),
        cmocka_unit_test(what_cannot_work_is_refused_when_it_is_opened),
        cmocka_unit_test(a_field_that_is_never_there_is_found_at_the_start),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
