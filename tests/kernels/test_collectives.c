/* Operators between ranks, on ranks that are threads: gradients against differences of the function of all ranks'
 * inputs together, with shares of rows that are unequal or empty. Values are small whole numbers, so that sums are
 * exact in either precision and differences are derivatives. N rows, C width. */
#include "kernels/cpu/cpu.h"
#include "kernels/ops.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "base/philox.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 4, MOST = 64 }; // MOST: elements of a tensor

// How the ranks hold a tensor: all the same one, each its own, each its share of the rows of one.
typedef enum Held { ALIKE, EACH, SHARE } Held;

typedef struct Shape {
    int64_t batch, length, width;
} Shape;

static Tensor *copy_of(Tape *t, Tensor *x, Shape s, Comm *c) { return (void)s, tensor_copy(t, x, c); }
static Tensor *reduce(Tape *t, Tensor *x, Shape s, Comm *c) { return (void)s, tensor_reduce(t, x, c); }
static Tensor *split(Tape *t, Tensor *x, Shape s, Comm *c) { return (void)s, sequence_split(t, x, c); }
static Tensor *scatter(Tape *t, Tensor *x, Shape s, Comm *c) { return (void)s, sequence_scatter(t, x, c); }
static Tensor *collect(Tape *t, Tensor *x, Shape s, Comm *c) { return sequence_collect(t, x, s.batch, s.length, c); }
static Tensor *gather(Tape *t, Tensor *x, Shape s, Comm *c) { return sequence_gather(t, x, s.batch, s.length, c); }

static const struct {
    const char *name;
    Tensor *(*call)(Tape *, Tensor *x, Shape, Comm *);
    Held in, out;
} CASES[] = {
    {"tensor_copy", copy_of, ALIKE, EACH},    {"tensor_reduce", reduce, EACH, ALIKE},
    {"sequence_split", split, ALIKE, SHARE},  {"sequence_collect", collect, SHARE, ALIKE},
    {"sequence_gather", gather, SHARE, EACH}, {"sequence_scatter", scatter, EACH, SHARE},
};
enum { CASE_COUNT = sizeof CASES / sizeof *CASES };

typedef struct World { // one check; the arrays are what all ranks hold together: EACH (ranks, N C), else (N C)
    int number, ranks;
    Shape shape;
    Dtype dtype;
    bool before; // the input has a gradient already
    float in[MOST_RANKS * MOST], cotangent[MOST_RANKS * MOST], old[MOST_RANKS * MOST];
    double part[MOST_RANKS][MOST_RANKS * MOST + 1]; // of the function, by each rank: at the start, then one element up
    float gradient[MOST_RANKS][MOST_RANKS * MOST];  // as each rank sees it
    float out[MOST_RANKS][MOST];
} World;

static int64_t count_of(const World *w) { return w->shape.batch * w->shape.length * w->shape.width; }
static int64_t inputs_of(const World *w) { return count_of(w) * (CASES[w->number].in == EACH ? w->ranks : 1); }

// What a rank holds of an array: elements [first, first + count).
typedef struct Piece {
    int64_t first, count;
} Piece;

static Piece piece_of(const World *w, Held held, int rank) {
    int64_t rows = w->shape.batch * w->shape.length, width = w->shape.width, count = count_of(w);
    if (held != SHARE) return (Piece){held == EACH ? rank * count : 0, count};
    int64_t first = comm_share(rows, rank, w->ranks), end = comm_share(rows, rank + 1, w->ranks);
    return (Piece){first * width, (end - first) * width};
}

static void encode(Dtype t, void *out, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (t == F32)
            ((float *)out)[i] = x[i];
        else
            ((uint16_t *)out)[i] = f32_to_bf16(x[i]);
}

static void decode(Dtype t, float *out, const void *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        out[i] = t == F32 ? ((const float *)x)[i] : bf16_to_f32(((const uint16_t *)x)[i]);
}

static Tensor *input(Tape *t, const World *w, const float *in, int rank) {
    Held held = CASES[w->number].in;
    Piece p = piece_of(w, held, rank);
    int64_t whole[3] = {w->shape.batch, w->shape.length, w->shape.width};
    int64_t own[3] = {1, p.count / w->shape.width, w->shape.width};
    float host[MOST];
    encode(w->dtype, host, in + p.first, p.count);
    Tensor *x = tape_constant(t, w->dtype, 3, held == SHARE ? own : whole, host);
    x->needs_grad = true;
    return x;
}

// This rank's part of sum of cotangent . output; what all hold alike counts once.
static double part_of(const World *w, const Tensor *y, int rank) {
    Held held = CASES[w->number].out;
    Piece p = piece_of(w, held, rank);
    float out[MOST];
    double sum = 0;
    check(tensor_count(y) == p.count);
    decode(w->dtype, out, y->data, p.count);
    for (int64_t i = 0; i < p.count && (held != ALIKE || rank == 0); i++)
        sum += (double)w->cotangent[p.first + i] * (double)out[i];
    return sum;
}

static void preset(const World *w, Tape *t, Tensor *x, int rank) {
    Piece p = piece_of(w, CASES[w->number].in, rank);
    float old[MOST];
    encode(w->dtype, old, w->old + p.first, p.count);
    tape_seed(t, x, old);
}

static void run_rank(int rank, Comm *tensor, void *context) {
    World *w = context;
    Backend *b = cpu_backend_new(1, NULL, NULL);
    Tape *t = tape_new(b, true);
    float cotangent[MOST], in[MOST_RANKS * MOST];
    Tensor *x = input(t, w, w->in, rank), *y = CASES[w->number].call(t, x, w->shape, tensor);
    check(y);
    decode(w->dtype, w->out[rank], y->data, tensor_count(y));
    w->part[rank][0] = part_of(w, y, rank);
    if (w->before) preset(w, t, x, rank);
    Piece from = piece_of(w, CASES[w->number].out, rank), to = piece_of(w, CASES[w->number].in, rank);
    encode(w->dtype, cotangent, w->cotangent + from.first, from.count);
    tape_backward_from(t, y, cotangent, ALL_GRADIENTS);
    check(x->grad_written && x->grad);
    decode(w->dtype, w->gradient[rank] + to.first, x->grad, to.count);
    for (int64_t i = 0; i < inputs_of(w); i++) {
        memcpy(in, w->in, sizeof in);
        in[i] += 1;
        tape_reset(t);
        y = CASES[w->number].call(t, input(t, w, in, rank), w->shape, tensor);
        w->part[rank][i + 1] = part_of(w, y, rank);
    }
    tape_free(t);
    backend_free(b);
}

static double total(const World *w, int64_t place) {
    double sum = 0;
    for (int r = 0; r < w->ranks; r++) sum += w->part[r][place];
    return sum;
}

static void draw(float *out, int64_t count, uint64_t element) {
    Rng rng = rng_for(1, PURPOSE_TEST, element);
    for (int64_t i = 0; i < count; i++) out[i] = (float)((int)rng_below(&rng, 17) - 8);
}

static void check_case(World *w) {
    draw(w->in, MOST_RANKS * MOST, 1);
    draw(w->cotangent, MOST_RANKS * MOST, 2);
    draw(w->old, MOST_RANKS * MOST, 3);
    ranks_run(w->ranks, run_rank, w);
    for (int r = 0; r < w->ranks; r++) {
        Piece p = piece_of(w, CASES[w->number].in, r);
        for (int64_t i = p.first; i < p.first + p.count; i++) {
            double want = total(w, i + 1) - total(w, 0) + (w->before ? (double)w->old[i] : 0);
            if ((double)w->gradient[r][i] == want) continue;
            fail_msg("%s, %d ranks, %s, rank %d, element %d: %g, not %g", CASES[w->number].name, w->ranks,
                     w->dtype == F32 ? "f32" : "bf16", r, (int)i, (double)w->gradient[r][i], want);
        }
        if (CASES[w->number].out == ALIKE)
            assert_memory_equal(w->out[r], w->out[0], sizeof(float) * (size_t)count_of(w));
    }
}

static void check_all(Shape shape) {
    World *w = malloc(sizeof *w);
    assert_non_null(w);
    for (int number = 0; number < CASE_COUNT; number++)
        for (int ranks = 1; ranks <= MOST_RANKS; ranks *= 2)
            for (int k = 0; k < 4; k++) {
                *w = (World){.number = number, .ranks = ranks, .shape = shape};
                w->dtype = k & 1 ? BF16 : F32;
                w->before = k & 2;
                check_case(w);
            }
    free(w);
}

static void gradients_are_those_of_all_ranks_together(void **state) {
    (void)state;
    check_all((Shape){3, 5, 3}); // 15 rows over 2 and over 4
}

static void a_rank_may_have_no_rows(void **state) {
    (void)state;
    check_all((Shape){1, 3, 2}); // over 4
    check_all((Shape){1, 1, 4});
}

// ---- the vocabulary shared out ----

enum { ROWS = 13, WIDTH = 6, WORDS = 11 };

typedef struct Words { // the whole, and what each rank made of its share
    int ranks;
    Dtype dtype;
    int32_t ids[ROWS];
    float table[WORDS * WIDTH], x[ROWS * WIDTH], weight[ROWS], cotangent[ROWS * WIDTH];
    float embedded[MOST_RANKS][ROWS * WIDTH], loss[MOST_RANKS][ROWS], dx[MOST_RANKS][ROWS * WIDTH];
    float d_embedding[WORDS * WIDTH], d_head[WORDS * WIDTH]; // each rank writes its own words
} Words;

// This rank's words as a parameter whose gradient is `gradient`.
static Tensor *words_of(Tape *t, const Words *w, float *gradient, int rank) {
    int64_t first = comm_share(WORDS, rank, w->ranks), count = comm_share(WORDS, rank + 1, w->ranks) - first;
    float host[WORDS * WIDTH];
    encode(w->dtype, host, w->table + first * WIDTH, count * WIDTH);
    Tensor *table = tape_constant(t, w->dtype, SHAPE(count, WIDTH), host);
    table->is_parameter = table->needs_grad = true;
    table->grad = gradient + first * WIDTH;
    return table;
}

static void run_embedding(Words *w, Tape *t, Comm *tensor) {
    int rank = comm_rank(tensor);
    float cotangent[ROWS * WIDTH];
    Tensor *ids = tape_constant(t, I32, SHAPE(ROWS), w->ids), *table = words_of(t, w, w->d_embedding, rank);
    Tensor *y = split_embedding(t, ids, table, comm_share(WORDS, rank, w->ranks), WORDS);
    y = tensor_reduce(t, y, tensor);
    check(y);
    decode(w->dtype, w->embedded[rank], y->data, ROWS * WIDTH);
    encode(w->dtype, cotangent, w->cotangent, ROWS * WIDTH);
    tape_backward_from(t, y, cotangent, ALL_GRADIENTS);
}

static void run_loss(Words *w, Tape *t, Comm *tensor) {
    int rank = comm_rank(tensor);
    float host[ROWS * WIDTH];
    encode(w->dtype, host, w->x, ROWS * WIDTH);
    Tensor *x = tape_constant(t, w->dtype, SHAPE(ROWS, WIDTH), host);
    x->needs_grad = true;
    Tensor *targets = tape_constant(t, I32, SHAPE(ROWS), w->ids),
           *weight = tape_constant(t, F32, SHAPE(ROWS), w->weight);
    Tensor *y = split_cross_entropy(t, tensor_copy(t, x, tensor), words_of(t, w, w->d_head, rank), targets, weight,
                                    WORDS, tensor);
    check(y);
    tape_read(t, y, w->loss[rank]);
    tape_backward_from(t, y, w->cotangent, ALL_GRADIENTS);
    decode(w->dtype, w->dx[rank], x->grad, ROWS * WIDTH);
}

static void run_words(int rank, Comm *tensor, void *context) {
    (void)rank;
    Words *w = context;
    Backend *b = cpu_backend_new(1, NULL, NULL);
    Tape *t = tape_new(b, true);
    run_embedding(w, t, tensor);
    tape_reset(t);
    run_loss(w, t, tensor);
    tape_free(t);
    backend_free(b);
}

static Words *words_new(int ranks, Dtype dtype) {
    Words *w = calloc(1, sizeof *w);
    assert_non_null(w);
    Rng rng = rng_for(2, PURPOSE_TEST, 0);
    w->ranks = ranks;
    w->dtype = dtype;
    for (int i = 0; i < ROWS; i++) {
        w->ids[i] = (int32_t)rng_below(&rng, WORDS + 2) - 2; // some are no words
        w->weight[i] = (float)rng_uniform(&rng);
    }
    for (int i = 0; i < WORDS * WIDTH; i++) w->table[i] = (float)rng_normal(&rng);
    for (int i = 0; i < ROWS * WIDTH; i++) {
        w->x[i] = (float)rng_normal(&rng);
        w->cotangent[i] = (float)rng_normal(&rng);
    }
    ranks_run(ranks, run_words, w);
    return w;
}

static void expect_near(const float *got, const float *want, int64_t count, double bound) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs((double)want[i]));
    assert_true(most > 0);
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= bound * most))
            fail_msg("element %d is %.9g, not %.9g; the largest is %g", (int)i, (double)got[i], (double)want[i], most);
}

static void a_vocabulary_shared_out_gives_the_whole_ones_losses(void **state) {
    (void)state;
    for (int dtype = F32; dtype <= BF16; dtype++) {
        double bound = dtype == F32 ? 1e-6 : 0x1p-7; // a few roundings; in bf16 of each rank's part of dx
        Words *whole = words_new(1, (Dtype)dtype);
        for (int ranks = 2; ranks <= MOST_RANKS; ranks++) {
            Words *w = words_new(ranks, (Dtype)dtype);
            for (int r = 0; r < ranks; r++) {
                assert_memory_equal(w->embedded[r], whole->embedded[0], sizeof w->embedded[0]);
                assert_memory_equal(w->loss[r], w->loss[0], sizeof w->loss[0]);
                assert_memory_equal(w->dx[r], w->dx[0], sizeof w->dx[0]);
            }
            assert_memory_equal(w->d_embedding, whole->d_embedding, sizeof w->d_embedding);
            expect_near(w->loss[0], whole->loss[0], ROWS, 1e-6);
            expect_near(w->dx[0], whole->dx[0], ROWS * WIDTH, bound);
            expect_near(w->d_head, whole->d_head, WORDS * WIDTH, bound);
            free(w);
        }
        free(whole);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_all_ranks_together),
        cmocka_unit_test(a_rank_may_have_no_rows),
        cmocka_unit_test(a_vocabulary_shared_out_gives_the_whole_ones_losses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
