/* The contrastive loss over the pairs of all ranks: against the whole loss in double, against the operator over one
 * process's pairs, the same bits for every number of ranks, and the memory it takes. */
#include "base/philox.h"
#include "fusion/pair_ring.h"
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "tests/support/test.h"
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PIECES = 16, MOST_RANKS = 8 };

typedef struct Case {
    bool sigmoid;
    int pieces;
    int64_t rows[MOST_PIECES], width;
    float log_scale, bias;
    double weight;
    bool losses_alone;
} Case;

typedef struct Answer {
    int64_t pairs;
    float *images, *texts; // (pairs, E): features, then their gradients
    double loss[MOST_PIECES];
    float d_scale[MOST_PIECES], d_bias[MOST_PIECES];
    size_t peak; // of the work space of the rank that took most
} Answer;

typedef struct Rank {
    const Case *c;
    Answer *answer; // all ranks'; each writes its own parts
    Comm *data;
    int rank, ranks;
    size_t peak;
} Rank;

static int64_t pairs_before(const Case *c, int piece) {
    int64_t pairs = 0;
    for (int i = 0; i < piece; i++) pairs += c->rows[i];
    return pairs;
}

static void draw(float *x, int64_t rows, int64_t width, uint64_t site) {
    Rng rng = rng_for(7, PURPOSE_TEST, site);
    for (int64_t r = 0; r < rows; r++) {
        double squares = 0;
        for (int64_t i = 0; i < width; i++) x[r * width + i] = (float)rng_normal(&rng);
        for (int64_t i = 0; i < width; i++) squares += (double)x[r * width + i] * x[r * width + i];
        for (int64_t i = 0; i < width; i++) x[r * width + i] /= (float)sqrt(squares);
    }
}

static Answer features_of(const Case *c) {
    Answer a = {.pairs = pairs_before(c, c->pieces)};
    a.images = calloc((size_t)(a.pairs * c->width + 1), sizeof *a.images);
    a.texts = calloc((size_t)(a.pairs * c->width + 1), sizeof *a.texts);
    assert_true(a.images && a.texts);
    draw(a.images, a.pairs, c->width, 1);
    draw(a.texts, a.pairs, c->width, 2);
    return a;
}

static void answer_free(Answer *a) {
    free(a->images);
    free(a->texts);
}

static void *run_rank(void *context) {
    Rank *r = context;
    const Case *c = r->c;
    Backend *backend = cpu_backend_new(1, NULL, NULL);
    int first = c->pieces / r->ranks * r->rank;
    int64_t skip = pairs_before(c, first) * c->width;
    PairRing ring = {.backend = backend,
                     .data = r->data,
                     .sigmoid = c->sigmoid,
                     .width = c->width,
                     .rows = c->rows,
                     .pieces = c->pieces,
                     .weight = c->weight,
                     .log_scale = &c->log_scale,
                     .bias = &c->bias};
    r->peak = (size_t)pair_ring_space(&ring);
    ring.space = aligned_alloc(64, r->peak);
    assert_non_null(ring.space);
    pair_ring(&ring, r->answer->images + skip, r->answer->texts + skip, r->answer->loss + first,
              c->losses_alone ? NULL : r->answer->d_scale + first, c->sigmoid ? r->answer->d_bias + first : NULL);
    free(ring.space);
    backend_free(backend);
    return NULL;
}

static Answer run_on(const Case *c, int ranks) {
    Answer answer = features_of(c);
    Comm *ends[MOST_RANKS] = {NULL};
    Rank rank[MOST_RANKS];
    pthread_t thread[MOST_RANKS];
    if (ranks > 1) comm_threads_new(ranks, ends);
    for (int i = 0; i < ranks; i++) rank[i] = (Rank){c, &answer, ends[i], i, ranks, 0};
    for (int i = 0; i < ranks; i++) assert_int_equal(pthread_create(&thread[i], NULL, run_rank, &rank[i]), 0);
    for (int i = 0; i < ranks; i++) {
        pthread_join(thread[i], NULL);
        if (rank[i].peak > answer.peak) answer.peak = rank[i].peak;
    }
    for (int i = 0; i < ranks; i++) comm_free(ends[i]);
    return answer;
}

// ---- the whole loss in double ----

typedef struct Truth {
    double *loss; // (P)
    double d_scale, d_bias;
    double *images, *texts; // gradients (pairs, E)
} Truth;

static double logit(const Case *c, const Answer *x, int64_t i, int64_t j, double log_scale, double bias) {
    double product = 0;
    for (int64_t e = 0; e < c->width; e++) product += (double)x->images[i * c->width + e] * x->texts[j * c->width + e];
    return exp(log_scale) * product + (c->sigmoid ? bias : 0);
}

static double *logits_of(const Case *c, const Answer *x, double log_scale, double bias) {
    double *s = calloc((size_t)(x->pairs * x->pairs + 1), sizeof *s);
    assert_non_null(s);
    for (int64_t i = 0; i < x->pairs; i++)
        for (int64_t j = 0; j < x->pairs; j++) s[i * x->pairs + j] = logit(c, x, i, j, log_scale, bias);
    return s;
}

static double log_sum_exp(const double *s, int64_t n, int64_t stride) {
    double most = s[0], sum = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, s[i * stride]);
    for (int64_t i = 0; i < n; i++) sum += exp(s[i * stride] - most);
    return most + log(sum);
}

// Loss of each pair, and (where wanted) the gradient by each logit, in place of the logits.
static void differentiate(const Case *c, double *s, int64_t n, double *loss, bool gradient) {
    double *rows = calloc((size_t)n + 1, sizeof *rows), *columns = calloc((size_t)n + 1, sizeof *columns);
    assert_true(rows && columns);
    for (int64_t i = 0; i < n; i++) {
        rows[i] = log_sum_exp(s + i * n, n, 1);
        columns[i] = log_sum_exp(s + i, n, n);
        loss[i] = c->sigmoid ? 0 : 0.5 * (rows[i] + columns[i]) - s[i * n + i];
        for (int64_t j = 0; j < n && c->sigmoid; j++) loss[i] += log1p(exp(i == j ? -s[i * n + j] : s[i * n + j]));
    }
    for (int64_t k = 0; k < n * n && gradient; k++) {
        int64_t i = k / n, j = k % n;
        double own = i == j ? 1 : 0;
        s[k] = c->sigmoid ? 1 / (1 + exp(-s[k])) - own : 0.5 * (exp(s[k] - rows[i]) + exp(s[k] - columns[j])) - own;
    }
    free(rows);
    free(columns);
}

static double total_at(const Case *c, const Answer *x, double log_scale, double bias) {
    double *s = logits_of(c, x, log_scale, bias), *loss = calloc((size_t)x->pairs + 1, sizeof *loss), sum = 0;
    differentiate(c, s, x->pairs, loss, false);
    for (int64_t i = 0; i < x->pairs; i++) sum += loss[i];
    free(s);
    free(loss);
    return sum;
}

static void add_row(double *to, double factor, const float *row, int64_t width) {
    for (int64_t e = 0; e < width; e++) to[e] += factor * row[e];
}

static Truth truth_of(const Case *c, const Answer *x) {
    int64_t n = x->pairs, width = c->width;
    double *s = logits_of(c, x, c->log_scale, c->bias), *loss = calloc((size_t)n + 1, sizeof *loss), step = 1e-4;
    double factor = n ? c->weight / (double)n : 0, scale = factor * exp(c->log_scale);
    Truth t = {calloc((size_t)c->pieces, sizeof *t.loss), 0, 0, calloc((size_t)(n * width + 1), sizeof(double)),
               calloc((size_t)(n * width + 1), sizeof(double))};
    differentiate(c, s, n, loss, true);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            add_row(t.images + i * width, scale * s[i * n + j], x->texts + j * width, width);
            add_row(t.texts + j * width, scale * s[i * n + j], x->images + i * width, width);
        }
    for (int p = 0; p < c->pieces; p++)
        for (int64_t i = pairs_before(c, p); i < pairs_before(c, p + 1); i++) t.loss[p] += loss[i];
    t.d_scale = factor * (total_at(c, x, c->log_scale + step, c->bias) - total_at(c, x, c->log_scale - step, c->bias)) /
                (2 * step);
    t.d_bias = factor * (total_at(c, x, c->log_scale, c->bias + step) - total_at(c, x, c->log_scale, c->bias - step)) /
               (2 * step);
    free(s);
    free(loss);
    return t;
}

static void truth_free(Truth *t) {
    free(t->loss);
    free(t->images);
    free(t->texts);
}

// The largest distance as a part of the largest value; NaN where there is one.
static double distance(const float *x, const double *truth, int64_t n) {
    double most = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(x[i] - truth[i]);
        if (!(d <= most)) most = d;
        size = fmax(size, fabs(truth[i]));
    }
    return size > 0 ? most / size : most;
}

static double sum_of(const float *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}

static void assert_true_answer(const Case *c, const Answer *a) {
    Answer features = features_of(c);
    Truth t = truth_of(c, &features);
    double size = fabs(t.d_scale) + fabs(t.d_bias) + c->weight * 1e-2;
    assert_true(distance(a->images, t.images, a->pairs * c->width) < 1e-5);
    assert_true(distance(a->texts, t.texts, a->pairs * c->width) < 1e-5);
    for (int p = 0; p < c->pieces; p++) assert_true(fabs(a->loss[p] - t.loss[p]) <= 1e-6 * (fabs(t.loss[p]) + 1));
    assert_true(fabs(sum_of(a->d_scale, c->pieces) - t.d_scale) < 1e-5 * size);
    if (c->sigmoid) assert_true(fabs(sum_of(a->d_bias, c->pieces) - t.d_bias) < 1e-5 * size);
    truth_free(&t);
    answer_free(&features);
}

static void assert_same_bits(const Case *c, const Answer *a, const Answer *b) {
    size_t bytes = (size_t)(a->pairs * c->width) * sizeof(float), pieces = (size_t)c->pieces;
    assert_memory_equal(a->images, b->images, bytes);
    assert_memory_equal(a->texts, b->texts, bytes);
    assert_memory_equal(a->loss, b->loss, pieces * sizeof *a->loss);
    assert_memory_equal(a->d_scale, b->d_scale, pieces * sizeof *a->d_scale);
    assert_memory_equal(a->d_bias, b->d_bias, pieces * sizeof *a->d_bias);
}

// ---- cases: several tiles, one piece of more rows than a tile has, one of none ----

static Case uneven(bool sigmoid) {
    return (Case){.sigmoid = sigmoid,
                  .pieces = 8,
                  .rows = {37, 38, 129, 0, 1, 260, 64, 41},
                  .width = 24,
                  .log_scale = sigmoid ? 1.5f : 2.5f,
                  .bias = -3,
                  .weight = 0.7};
}

static void check_on(Case c, int ranks) {
    Answer a = run_on(&c, ranks);
    assert_true_answer(&c, &a);
    answer_free(&a);
}

static void one_rank_equals_the_whole_loss_in_double(void **state) {
    (void)state;
    check_on(uneven(false), 1);
    check_on(uneven(true), 1);
}

static void two_ranks_equal_the_whole_loss_in_double(void **state) {
    (void)state;
    check_on(uneven(false), 2);
    check_on(uneven(true), 2);
}

static void numbers_that_are_no_powers_of_two_work(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = uneven(sigmoid);
        c.pieces = 6;
        check_on(c, 1);
        check_on(c, 3);
    }
}

static void check_bits(Case c) {
    Answer alone = run_on(&c, 1);
    for (int ranks = 2; ranks <= 8 && c.pieces % ranks == 0; ranks *= 2) {
        Answer a = run_on(&c, ranks);
        assert_same_bits(&c, &alone, &a);
        answer_free(&a);
    }
    answer_free(&alone);
}

static void bits_do_not_depend_on_the_number_of_ranks(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = uneven(sigmoid);
        check_bits(c);
        c.pieces = 16;
        c.rows[12] = 100;
        check_bits(c);
        for (int i = 0; i < 16; i++) c.rows[i] = 19;
        check_bits(c);
    }
}

static void a_piece_may_be_larger_than_a_tile(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = {
            .sigmoid = sigmoid, .pieces = 2, .rows = {1100, 30}, .width = 6, .log_scale = 2, .bias = -4, .weight = 1};
        check_on(c, 1);
        check_bits(c);
    }
}

static void ranks_without_pairs_take_part(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = {.sigmoid = sigmoid, .pieces = 4, .rows = {0, 0, 50, 0}, .width = 8, .log_scale = 1, .weight = 1};
        check_on(c, 4);
        check_bits(c);
        c.rows[2] = 0;
        check_on(c, 4);
        c.rows[1] = 1;
        check_on(c, 4);
    }
}

static void a_scale_beyond_the_clamp_has_no_gradient(void **state) {
    (void)state;
    Case c = uneven(false);
    c.log_scale = 6;
    Answer a = run_on(&c, 2);
    for (int p = 0; p < c.pieces; p++) assert_true(a.d_scale[p] == 0);
    c.log_scale = (float)log(100);
    Answer at_it = run_on(&c, 2);
    assert_memory_equal(a.images, at_it.images, (size_t)(a.pairs * c.width) * sizeof(float));
    answer_free(&a);
    answer_free(&at_it);
}

static void not_a_number_reaches_the_loss_and_every_gradient(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = uneven(sigmoid);
        c.log_scale = NAN;
        Answer a = run_on(&c, 2);
        for (int64_t i = 0; i < a.pairs * c.width; i++) assert_true(isnan(a.images[i]) && isnan(a.texts[i]));
        for (int p = 0; p < c.pieces; p++)
            if (c.rows[p]) assert_true(isnan(a.loss[p]) && isnan(a.d_scale[p]));
        answer_free(&a);
    }
}

static void losses_alone_are_the_same_and_leave_the_features(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = uneven(sigmoid);
        Answer whole = run_on(&c, 2), features = features_of(&c);
        c.losses_alone = true;
        Answer alone = run_on(&c, 4);
        assert_memory_equal(alone.loss, whole.loss, sizeof whole.loss);
        assert_memory_equal(alone.images, features.images, (size_t)(alone.pairs * c.width) * sizeof(float));
        assert_memory_equal(alone.texts, features.texts, (size_t)(alone.pairs * c.width) * sizeof(float));
        answer_free(&whole);
        answer_free(&features);
        answer_free(&alone);
    }
}

static void equals_the_operator_over_the_same_pairs(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        Case c = uneven(sigmoid);
        Answer ring = run_on(&c, 2), x = features_of(&c);
        Backend *backend = cpu_backend_new(1, NULL, NULL);
        Tape *t = tape_new(backend, true);
        Tensor *a = tape_constant(t, F32, SHAPE(x.pairs, c.width), x.images);
        Tensor *b = tape_constant(t, F32, SHAPE(x.pairs, c.width), x.texts);
        Tensor *log_scale = tape_constant(t, F32, SHAPE(1), &c.log_scale),
               *bias = tape_constant(t, F32, SHAPE(1), &c.bias);
        a->needs_grad = b->needs_grad = log_scale->needs_grad = true;
        Tensor *loss = sigmoid ? siglip_loss(t, a, b, log_scale, bias) : clip_loss(t, a, b, log_scale);
        tape_backward(t, scale(t, loss, c.weight / (double)x.pairs), ALL_GRADIENTS);
        double total = 0, largest = 0, off = 0;
        for (int p = 0; p < c.pieces; p++) total += ring.loss[p];
        assert_true(fabs(total - *(float *)loss->data) < 1e-5 * total);
        for (int64_t i = 0; i < x.pairs * c.width; i++) {
            largest = fmax(largest, fabsf(((float *)a->grad)[i]));
            off = fmax(off, fabs((double)((float *)a->grad)[i] - ring.images[i]));
            off = fmax(off, fabs((double)((float *)b->grad)[i] - ring.texts[i]));
        }
        assert_true(off < 1e-5 * largest);
        assert_true(fabs(*(float *)log_scale->grad - sum_of(ring.d_scale, c.pieces)) < 1e-5);
        tape_free(t);
        backend_free(backend);
        answer_free(&ring);
        answer_free(&x);
    }
}

// ---- memory ----

static void the_work_space_is_what_was_said(void **state) {
    (void)state;
    for (int sigmoid = 0; sigmoid < 2; sigmoid++)
        for (int ranks = 1; ranks <= 4; ranks *= 2) {
            Case c = {.sigmoid = sigmoid, .pieces = 8, .width = 16, .log_scale = 1, .weight = 1};
            for (int i = 0; i < c.pieces; i++) c.rows[i] = 150;
            Answer a = run_on(&c, ranks);
            assert_true(a.peak > 0 && a.peak <= (size_t)pair_ring_bytes(1200 / ranks, 1200, 8, c.width));
            answer_free(&a);
        }
}

static void a_large_batch_takes_less_than_64_mb_a_rank(void **state) {
    (void)state;
    for (int ranks = 2; ranks <= 64; ranks *= 2)
        for (int pieces = ranks; pieces <= 256; pieces *= 2)
            assert_true(pair_ring_bytes(32768 / ranks, 32768, pieces, 512) < 64000000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_rank_equals_the_whole_loss_in_double),
        cmocka_unit_test(two_ranks_equal_the_whole_loss_in_double),
        cmocka_unit_test(numbers_that_are_no_powers_of_two_work),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_ranks),
        cmocka_unit_test(a_piece_may_be_larger_than_a_tile),
        cmocka_unit_test(ranks_without_pairs_take_part),
        cmocka_unit_test(a_scale_beyond_the_clamp_has_no_gradient),
        cmocka_unit_test(not_a_number_reaches_the_loss_and_every_gradient),
        cmocka_unit_test(losses_alone_are_the_same_and_leave_the_features),
        cmocka_unit_test(equals_the_operator_over_the_same_pairs),
        cmocka_unit_test(the_work_space_is_what_was_said),
        cmocka_unit_test(a_large_batch_takes_less_than_64_mb_a_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
