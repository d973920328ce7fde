/* Communication: every call, on groups of ranks that are threads; under mpirun or tcprun.sh (arguments: none) the
 * same tests run on its processes instead. */
#include "base/philox.h"
#include "kernels/comm/comm.h"
#include "kernels/tensor.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const int sizes[] = {1, 2, 3, 4, 8};
static const CommType types[] = {COMM_U8, COMM_I32, COMM_I64, COMM_F32, COMM_F64, COMM_BF16};
enum { SIZES = sizeof sizes / sizeof *sizes, TYPES = sizeof types / sizeof *types };

// *state: the world of processes, or NULL for threads.
static void everywhere(void **state, RankFunction function, void *argument) {
    Comm *world = *state;
    if (world) return function(comm_rank(world), world, argument);
    for (int i = 0; i < SIZES; i++) ranks_run(sizes[i], function, argument);
}

// ---- what ranks bring, and what must come out ----

// Element i of what a rank brings: floats whose sum depends on the order, small whole numbers otherwise.
static double value(CommType type, int rank, int64_t i) {
    uint32_t bits = (uint32_t)((uint64_t)(rank + 1) * 2654435761u + (uint64_t)i * 40503u);
    bits = (bits ^ bits >> 15) * 2246822519u;
    bits ^= bits >> 13;
    if (type == COMM_U8) return bits % 16;
    if (type == COMM_I32 || type == COMM_I64) return (double)(bits % 2001) - 1000;
    return ((double)bits / 4294967296.0 - 0.5) * (bits & 1 ? 1 : 1000);
}

static void put(CommType type, void *data, int64_t i, double x) {
    switch (type) {
    case COMM_U8:
        ((uint8_t *)data)[i] = (uint8_t)x;
        break;
    case COMM_I32:
        ((int32_t *)data)[i] = (int32_t)x;
        break;
    case COMM_I64:
        ((int64_t *)data)[i] = (int64_t)x;
        break;
    case COMM_F32:
        ((float *)data)[i] = (float)x;
        break;
    case COMM_F64:
        ((double *)data)[i] = x;
        break;
    case COMM_BF16:
        ((uint16_t *)data)[i] = f32_to_bf16((float)x);
        break;
    }
}

static double get(CommType type, const void *data, int64_t i) {
    switch (type) {
    case COMM_U8:
        return ((const uint8_t *)data)[i];
    case COMM_I32:
        return ((const int32_t *)data)[i];
    case COMM_I64:
        return (double)((const int64_t *)data)[i];
    case COMM_F32:
        return ((const float *)data)[i];
    case COMM_F64:
        return ((const double *)data)[i];
    case COMM_BF16:
        return bf16_to_f32(((const uint16_t *)data)[i]);
    }
    return NAN;
}

static void *brought(CommType type, int rank, int64_t n) {
    void *data = malloc((size_t)n * comm_type_size(type) + 1);
    for (int64_t i = 0; i < n; i++) put(type, data, i, value(type, rank, i));
    return data;
}

static double one_of(CommType type, int rank, int64_t i) { // as rounded to its type
    char element[8];
    put(type, element, 0, value(type, rank, i));
    return get(type, element, 0);
}

// The binary tree over [first, end), in the precision in which it is formed.
static double tree(CommType type, CommReduction reduction, int first, int end, int64_t i) {
    if (end - first == 1) return one_of(type, first, i);
    int middle = first + (end - first) / 2;
    double a = tree(type, reduction, first, middle, i), b = tree(type, reduction, middle, end, i);
    if (reduction != COMM_SUM) return (reduction == COMM_MAX) == (a > b) ? a : b;
    return type == COMM_F32 || type == COMM_BF16 ? (double)((float)a + (float)b) : a + b;
}

static double expected(CommType type, CommReduction reduction, int ranks, int64_t i) {
    char element[8];
    put(type, element, 0, tree(type, reduction, 0, ranks, i));
    return get(type, element, 0);
}

static void assert_reduced(CommType type, CommReduction reduction, CommOrder order, int ranks, const void *data,
                           int64_t first, int64_t n) {
    double slack = order == COMM_ORDERED || reduction != COMM_SUM || type < COMM_F32 ? 0 : 1e-4 * ranks;
    if (type == COMM_BF16 && slack > 0) slack = 4 * ranks;
    for (int64_t i = 0; i < n; i++) {
        double want = expected(type, reduction, ranks, first + i), have = get(type, data, i);
        if (!(fabs(have - want) <= slack))
            fail_msg("type %d, reduction %d, order %d, %d ranks: element %lld is %.9g, not %.9g", type, reduction,
                     order, ranks, (long long)(first + i), have, want);
    }
}

// ---- reductions ----

static const int64_t counts[] = {0, 1, 2, 7, 1000, 9001, 270007};
enum { COUNTS = sizeof counts / sizeof *counts };

static void reduce_all_types(int rank, Comm *world, void *argument) {
    (void)argument;
    int ranks = comm_size(world);
    for (int t = 0; t < TYPES; t++)
        for (int c = 0; c < COUNTS - 1; c++)
            for (int k = 0; k < 6; k++) {
                CommReduction reduction = (CommReduction)(k / 2);
                CommOrder order = k & 1 ? COMM_ORDERED : COMM_FAST;
                void *data = brought(types[t], rank, counts[c]);
                comm_all_reduce(world, data, counts[c], types[t], reduction, order, "test");
                assert_reduced(types[t], reduction, order, ranks, data, 0, counts[c]);
                free(data);
            }
}

static void all_reduce_combines_every_type_in_every_way(void **state) { everywhere(state, reduce_all_types, NULL); }

static void reduce_much(int rank, Comm *world, void *argument) {
    (void)argument;
    int64_t n = counts[COUNTS - 1] * 3;
    for (int ordered = 0; ordered < 2; ordered++) {
        float *data = brought(COMM_F32, rank, n);
        comm_all_reduce(world, data, n, COMM_F32, COMM_SUM, (CommOrder)ordered, "test");
        assert_reduced(COMM_F32, COMM_SUM, (CommOrder)ordered, comm_size(world), data, 0, n);
        free(data);
    }
}

static void all_reduce_in_many_chunks_is_still_right(void **state) { everywhere(state, reduce_much, NULL); }

static void scatter_all_types(int rank, Comm *world, void *argument) {
    (void)argument;
    int ranks = comm_size(world);
    for (int t = 0; t < TYPES; t++)
        for (int c = 0; c < COUNTS; c++)
            for (int k = 0; k < 4; k++) {
                if (c == COUNTS - 1 && types[t] != COMM_F32) continue;
                int64_t width = k < 2 ? 1 : 3, rows = counts[c] / width;
                CommOrder order = k & 1 ? COMM_ORDERED : COMM_FAST;
                int64_t begin = comm_share(rows, rank, ranks) * width, end = comm_share(rows, rank + 1, ranks) * width;
                size_t size = comm_type_size(types[t]);
                char *in = brought(types[t], rank, rows * width),
                     *out = k < 2 ? in + begin * (int64_t)size : malloc((size_t)(end - begin) * size + 1);
                comm_reduce_scatter(world, out, in, rows, width, types[t], order, "test");
                assert_reduced(types[t], COMM_SUM, order, ranks, out, begin, end - begin);
                if (k >= 2) {
                    for (int64_t i = 0; i < rows * width; i++)
                        assert_true(get(types[t], in, i) == one_of(types[t], rank, i));
                    free(out);
                }
                free(in);
            }
}

static void reduce_scatter_leaves_each_rank_its_share_in_place_or_aside(void **state) {
    everywhere(state, scatter_all_types, NULL);
}

static void reduce_nan(int rank, Comm *world, void *argument) {
    (void)argument;
    static const int64_t lengths[] = {5, 50000};
    for (int l = 0; l < 2; l++)
        for (int k = 0; k < 3; k++) {
            int64_t n = lengths[l];
            float *data = brought(COMM_F32, rank, n);
            if (rank == comm_size(world) - 1) data[n / 2] = NAN;
            comm_all_reduce(world, data, n, COMM_F32, (CommReduction)k, COMM_FAST, "test");
            for (int64_t i = 0; i < n; i++) assert_int_equal(isnan(data[i]) != 0, i == n / 2);
            free(data);
        }
}

static void not_a_number_on_one_rank_reaches_all(void **state) { everywhere(state, reduce_nan, NULL); }

// ---- moving bytes ----

static void gather_rows(int rank, Comm *world, void *argument) {
    (void)argument;
    static const int64_t row_counts[] = {0, 1, 2, 13, 4001}, widths[] = {1, 4, 1000};
    int ranks = comm_size(world);
    for (int c = 0; c < 15; c++)
        for (int in_place = 0; in_place < 2; in_place++) {
            int64_t rows = row_counts[c % 5], width = widths[c / 5];
            int64_t begin = comm_share(rows, rank, ranks) * width, end = comm_share(rows, rank + 1, ranks) * width;
            uint8_t *out = calloc((size_t)(rows * width) + 1, 1),
                    *in = in_place ? out + begin : malloc((size_t)(end - begin) + 1);
            for (int64_t i = begin; i < end; i++) in[i - begin] = (uint8_t)(i * 7 + i / 256);
            comm_all_gather(world, out, in, rows, width, "test");
            for (int64_t i = 0; i < rows * width; i++) assert_int_equal(out[i], (uint8_t)(i * 7 + i / 256));
            if (!in_place) free(in);
            free(out);
        }
}

static void all_gather_collects_unequal_shares(void **state) { everywhere(state, gather_rows, NULL); }

static int64_t piece_bytes(int from, int to, int64_t scale) { return (from * 3 + to * 5) % 4 * scale; }
static uint8_t piece_byte(int from, int to, int64_t i) { return (uint8_t)(from * 31 + to * 17 + i + i / 256); }

static void exchange_pieces(int rank, Comm *world, void *argument) {
    (void)argument;
    static const int64_t scales[] = {0, 1, 900001};
    int ranks = comm_size(world);
    for (int s = 0; s < 3; s++) {
        int64_t in_bytes[64], out_bytes[64], in_total = 0, out_total = 0;
        for (int q = 0; q < ranks; q++) {
            in_total += in_bytes[q] = piece_bytes(rank, q, scales[s]);
            out_total += out_bytes[q] = piece_bytes(q, rank, scales[s]);
        }
        uint8_t *in = malloc((size_t)in_total + 1), *out = malloc((size_t)out_total + 1), *p = in;
        for (int q = 0; q < ranks; q++)
            for (int64_t i = 0; i < in_bytes[q]; i++) *p++ = piece_byte(rank, q, i);
        comm_all_to_all(world, out, out_bytes, in, in_bytes, "test");
        p = out;
        for (int q = 0; q < ranks; q++)
            for (int64_t i = 0; i < out_bytes[q]; i++)
                if (*p++ != piece_byte(q, rank, i)) fail_msg("from %d to %d, byte %lld", q, rank, (long long)i);
        free(in);
        free(out);
    }
}

static void all_to_all_moves_unequal_pieces(void **state) { everywhere(state, exchange_pieces, NULL); }

static void broadcast_from_each(int rank, Comm *world, void *argument) {
    (void)argument;
    static const int64_t lengths[] = {0, 1, 5000, 2500003};
    for (int root = 0; root < comm_size(world); root++)
        for (int l = 0; l < 4; l++) {
            uint8_t *data = malloc((size_t)lengths[l] + 1);
            for (int64_t i = 0; i < lengths[l]; i++) data[i] = rank == root ? piece_byte(root, l, i) : 0xee;
            comm_broadcast(world, data, lengths[l], root, "test");
            for (int64_t i = 0; i < lengths[l]; i++)
                if (data[i] != piece_byte(root, l, i)) fail_msg("root %d, byte %lld", root, (long long)i);
            free(data);
        }
}

static void broadcast_reaches_all_from_any_root(void **state) { everywhere(state, broadcast_from_each, NULL); }

// Every rank brings rank + 1 in each place; all four are under way at once.
static void start_all_four(int rank, Comm *world, void *argument) {
    (void)argument;
    enum { EACH = 70001 };
    int ranks = comm_size(world);
    int64_t rows = ranks * (int64_t)EACH, bytes[64];
    int32_t *sent = malloc((size_t)rows * sizeof *sent), *swapped = calloc((size_t)rows, sizeof *sent);
    int32_t *gathered = calloc((size_t)rows, sizeof *sent), *summed = calloc(EACH, sizeof *sent);
    int32_t *root = malloc(EACH * sizeof *root);
    assert_true(sent && swapped && gathered && summed && root && ranks <= 64);
    for (int64_t i = 0; i < rows; i++) sent[i] = rank + 1;
    for (int i = 0; i < EACH; i++) root[i] = rank + 1;
    for (int q = 0; q < ranks; q++) bytes[q] = EACH * (int64_t)sizeof *sent;
    CommRequest *requests[] = {
        comm_start_broadcast(world, root, bytes[0], ranks - 1, "test"),
        comm_start_all_to_all(world, swapped, bytes, sent, bytes, "test"),
        comm_start_all_gather(world, gathered, sent, rows, sizeof *sent, "test"),
        comm_start_reduce_scatter(world, summed, sent, rows, 1, COMM_I32, COMM_ORDERED, "test"),
    };
    for (int i = 3; i >= 0; i--) comm_wait(requests[i]);
    for (int i = 0; i < EACH; i++) {
        assert_int_equal(root[i], ranks);
        assert_int_equal(summed[i], ranks * (ranks + 1) / 2);
    }
    for (int64_t i = 0; i < rows; i++) {
        assert_int_equal(swapped[i], i / EACH + 1);
        assert_int_equal(gathered[i], i / EACH + 1);
    }
    free(sent);
    free(swapped);
    free(gathered);
    free(summed);
    free(root);
}

static void every_collective_may_be_started(void **state) { everywhere(state, start_all_four, NULL); }

// Every rank sends to its right neighbour, two calls of one tag and one of another, received in another order.
static void pass_around(int rank, Comm *world, void *argument) {
    (void)argument;
    int ranks = comm_size(world), right = (rank + 1) % ranks, left = (rank + ranks - 1) % ranks;
    enum { LONG = 3000001, CALLS = 3 };
    static const int64_t bytes[CALLS] = {LONG, 10, 0};
    static const int tags[CALLS] = {1, 1, 0};
    uint8_t *in[CALLS], *out[CALLS];
    CommRequest *sent[CALLS], *received[CALLS];
    if (ranks == 1) return;
    for (int i = 0; i < CALLS; i++) {
        in[i] = malloc((size_t)bytes[i] + 1);
        out[i] = calloc((size_t)bytes[i] + 1, 1);
        for (int64_t b = 0; b < bytes[i]; b++) in[i][b] = piece_byte(rank, i, b);
        sent[i] = comm_start_send(world, in[i], bytes[i], right, tags[i], "test");
    }
    received[2] = comm_start_receive(world, out[2], bytes[2], left, tags[2], "test");
    for (int i = 0; i < 2; i++) received[i] = comm_start_receive(world, out[i], bytes[i], left, tags[i], "test");
    for (int i = CALLS - 1; i >= 0; i--) {
        comm_wait(received[i]);
        comm_wait(sent[i]);
        for (int64_t b = 0; b < bytes[i]; b++)
            if (out[i][b] != piece_byte(left, i, b)) fail_msg("call %d, byte %lld", i, (long long)b);
        free(in[i]);
        free(out[i]);
    }
}

static void sends_of_one_tag_arrive_in_order(void **state) { everywhere(state, pass_around, NULL); }

// Every rank sends each of the others messages of several sizes, which are asked for in the opposite order, one by one.
static void ask_backwards(int rank, Comm *world, void *argument) {
    (void)argument;
    enum { CALLS = 5, LONGEST = 2500000, MOST = 8 };
    static const int64_t bytes[CALLS] = {LONGEST, 1, 70000, 1 << 20, 4096};
    int ranks = comm_size(world);
    CommRequest *sent[MOST][CALLS] = {{NULL}};
    uint8_t *in = malloc(LONGEST + CALLS), *out = malloc(LONGEST);
    check(in && out && ranks <= MOST);
    for (int64_t b = 0; b < LONGEST + CALLS; b++) in[b] = piece_byte(rank, 0, b);
    for (int q = 0; q < ranks; q++)
        for (int i = 0; i < CALLS && q != rank; i++)
            sent[q][i] = comm_start_send(world, in + i, bytes[i], q, i, "test");
    for (int i = CALLS - 1; i >= 0; i--)
        for (int q = ranks - 1; q >= 0; q--) {
            if (q == rank) continue;
            comm_receive(world, out, bytes[i], q, i, "test");
            for (int64_t b = 0; b < bytes[i]; b++)
                if (out[b] != piece_byte(q, 0, b + i)) fail_msg("from %d, call %d, byte %lld", q, i, (long long)b);
        }
    for (int q = 0; q < ranks; q++)
        for (int i = 0; i < CALLS; i++) comm_wait(sent[q][i]);
    free(in);
    free(out);
}

static void messages_wait_until_they_are_asked_for(void **state) { everywhere(state, ask_backwards, NULL); }

// ---- started calls, groups ----

enum { STARTED = 12 };

static void start_many(int rank, Comm *world, void *argument) {
    (void)argument;
    CommRequest *requests[STARTED];
    void *data[STARTED];
    int64_t n[STARTED];
    for (int i = 0; i < STARTED; i++) {
        n[i] = counts[i % COUNTS];
        data[i] = brought(COMM_F32, rank, n[i]);
        requests[i] = comm_start_all_reduce(world, data[i], n[i], COMM_F32, COMM_SUM, COMM_ORDERED, "test");
    }
    for (int i = STARTED - 1; i >= 0; i--) { // the last first
        comm_wait(requests[i]);
        assert_reduced(COMM_F32, COMM_SUM, COMM_ORDERED, comm_size(world), data[i], 0, n[i]);
        free(data[i]);
    }
}

static void started_calls_may_be_waited_for_in_any_order(void **state) { everywhere(state, start_many, NULL); }

static void done_without_waiting(int rank, Comm *world, void *argument) {
    (void)argument;
    int64_t n = 9001;
    float *data = brought(COMM_F32, rank, n);
    CommRequest *request = comm_start_all_reduce(world, data, n, COMM_F32, COMM_SUM, COMM_ORDERED, "test");
    while (!comm_done(request)) usleep(100);
    comm_wait(request);
    assert_reduced(COMM_F32, COMM_SUM, COMM_ORDERED, comm_size(world), data, 0, n);
    free(data);
}

static void a_started_call_ends_beside_the_caller(void **state) { everywhere(state, done_without_waiting, NULL); }

static void cross_groups(int rank, Comm *world, void *argument) {
    (void)argument;
    int64_t n = 50000;
    Comm *other = comm_split(world, 0, -rank, "other"); // the same ranks, turned round
    float *a = brought(COMM_F32, rank, n), *b = brought(COMM_F32, comm_rank(other), n);
    Comm *first = rank & 1 ? world : other, *second = rank & 1 ? other : world;
    CommRequest *one = comm_start_all_reduce(first, first == world ? a : b, n, COMM_F32, COMM_SUM, COMM_ORDERED, "1");
    CommRequest *two = comm_start_all_reduce(second, second == world ? a : b, n, COMM_F32, COMM_SUM, COMM_ORDERED, "2");
    comm_wait(one);
    comm_wait(two);
    assert_reduced(COMM_F32, COMM_SUM, COMM_ORDERED, comm_size(world), a, 0, n);
    assert_reduced(COMM_F32, COMM_SUM, COMM_ORDERED, comm_size(world), b, 0, n);
    free(a);
    free(b);
    comm_free(other);
}

static void groups_do_not_wait_for_one_another(void **state) { everywhere(state, cross_groups, NULL); }

// Sums in a group of its own, blocking and started in turn, while the others of its process do the same.
static void *sum_beside_others(void *context) {
    Comm *group = context;
    int rank = comm_rank(group);
    for (int i = 0; i < 60; i++) {
        int64_t n = counts[i % 6];
        float *data = brought(COMM_F32, rank, n);
        if (i % 2)
            comm_all_reduce(group, data, n, COMM_F32, COMM_SUM, COMM_ORDERED, "test");
        else
            comm_wait(comm_start_all_reduce(group, data, n, COMM_F32, COMM_SUM, COMM_ORDERED, "test"));
        assert_reduced(COMM_F32, COMM_SUM, COMM_ORDERED, comm_size(group), data, 0, n);
        free(data);
    }
    return NULL;
}

static void share_with_threads(int rank, Comm *world, void *argument) {
    (void)argument;
    enum { GROUPS = 3 };
    Comm *groups[GROUPS];
    pthread_t threads[GROUPS];
    for (int i = 0; i < GROUPS; i++) groups[i] = comm_split(world, 0, i % 2 ? rank : -rank, "thread");
    for (int i = 0; i < GROUPS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sum_beside_others, groups[i]), 0);
    sum_beside_others(world);
    for (int i = 0; i < GROUPS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < GROUPS; i++) comm_free(groups[i]);
}

static void threads_use_groups_of_their_own_at_the_same_time(void **state) {
    everywhere(state, share_with_threads, NULL);
}

static void free_too_early(int rank, Comm *world, void *argument) {
    static const char byte;
    (void)argument;
    Comm *group = comm_split(world, 0, rank, "group");
    if (rank == 0) comm_start_send(group, &byte, 1, 1, 0, "test"); // nobody receives it
    if (rank == 0) comm_free(group);
    comm_barrier(world, "test");
}

static void a_group_whose_calls_are_under_way_is_not_freed(void **state) {
    int status;
    if (*state) return; // a process of MPI must not fork
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL); // cmocka reports aborts by itself
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        ranks_run(2, free_too_early, NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void split_twice(int rank, Comm *world, void *argument) {
    (void)argument;
    int ranks = comm_size(world), columns = ranks % 2 == 0 ? 2 : 1;
    Comm *row = comm_split(world, rank / columns, rank, "row"),
         *column = comm_split(world, rank % columns, rank, "column");
    assert_int_equal(comm_size(row), columns);
    assert_int_equal(comm_rank(row), rank % columns);
    assert_int_equal(comm_size(column), ranks / columns);
    assert_int_equal(comm_rank(column), rank / columns);
    assert_string_equal(comm_name(column), "column");
    for (int r = 0; r < comm_size(column); r++)
        assert_int_equal(comm_world_rank(column, r), r * columns + rank % columns);
    int64_t one = rank, sum = 0;
    comm_all_reduce(row, &one, 1, COMM_I64, COMM_SUM, COMM_FAST, "test");
    comm_all_reduce(column, &one, 1, COMM_I64, COMM_SUM, COMM_FAST, "test");
    for (int r = 0; r < ranks; r++) sum += r;
    assert_int_equal(one, sum);
    Comm *odd = comm_split(column, rank & 1 ? 0 : -1, 0, "odd"); // none for even ranks
    assert_int_equal(odd != NULL, rank & 1);
    comm_barrier(world, "test");
    comm_free(odd);
    comm_free(column);
    comm_free(row);
}

static void a_mesh_of_groups_sums_rows_and_columns(void **state) { everywhere(state, split_twice, NULL); }

static void pass_barrier(int rank, Comm *world, void *argument) {
    _Atomic int *arrived = argument;
    for (int i = 1; i <= 5; i++) {
        if (rank == 0) usleep(1000);
        if (arrived) ++*arrived;
        comm_barrier(world, "test");
        if (arrived) assert_true(*arrived >= i * comm_size(world));
        comm_barrier(world, "test");
    }
}

static void nobody_passes_a_barrier_before_the_last_has_come(void **state) {
    for (int i = 0; i < SIZES && !*state; i++) {
        _Atomic int arrived = 0;
        ranks_run(sizes[i], pass_barrier, &arrived);
    }
    if (*state) pass_barrier(comm_rank(*state), *state, NULL);
}

// ---- alone ----

static void alone_calls_copy(void **state) {
    (void)state;
    Comm *groups[] = {NULL, comm_self_new()};
    for (int g = 0; g < 2; g++) {
        double in[3] = {1, 2, 3}, out[3] = {0};
        int64_t bytes = sizeof in;
        assert_int_equal(comm_size(groups[g]), 1);
        assert_int_equal(comm_rank(groups[g]), 0);
        assert_int_equal(comm_world_rank(groups[g], 0), 0);
        comm_all_reduce(groups[g], in, 3, COMM_F64, COMM_SUM, COMM_ORDERED, "test");
        comm_broadcast(groups[g], in, bytes, 0, "test");
        comm_barrier(groups[g], "test");
        comm_reduce_scatter(groups[g], out, in, 3, 1, COMM_F64, COMM_FAST, "test");
        assert_memory_equal(out, in, sizeof in);
        memset(out, 0, sizeof out);
        comm_all_gather(groups[g], out, in, 3, sizeof *in, "test");
        assert_memory_equal(out, in, sizeof in);
        memset(out, 0, sizeof out);
        comm_all_to_all(groups[g], out, &bytes, in, &bytes, "test");
        assert_memory_equal(out, in, sizeof in);
        CommRequest *request = comm_start_all_reduce(groups[g], in, 3, COMM_F64, COMM_SUM, COMM_FAST, "test");
        assert_true(comm_done(request));
        comm_wait(request);
        assert_null(comm_status(groups[g], NULL).call);
        Comm *part = comm_split(groups[g], 3, 0, "part");
        assert_int_equal(comm_size(part), 1);
        comm_free(part);
        assert_null(comm_split(groups[g], -1, 0, "none"));
    }
    comm_free(groups[1]);
}

// ---- the world ----

static bool is_started(void) { return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("BIFOCAL_RANKS"); }

static int open_world(void **state) {
    Error error = {0};
    if (!is_started()) return 0;
    *state = comm_world_new(NULL, &error);
    if (!*state) print_error("%s\n", error.message);
    return *state ? 0 : -1;
}

static int close_world(void **state) {
    comm_free(*state);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_reduce_combines_every_type_in_every_way),
        cmocka_unit_test(all_reduce_in_many_chunks_is_still_right),
        cmocka_unit_test(reduce_scatter_leaves_each_rank_its_share_in_place_or_aside),
        cmocka_unit_test(not_a_number_on_one_rank_reaches_all),
        cmocka_unit_test(all_gather_collects_unequal_shares),
        cmocka_unit_test(all_to_all_moves_unequal_pieces),
        cmocka_unit_test(broadcast_reaches_all_from_any_root),
        cmocka_unit_test(every_collective_may_be_started),
        cmocka_unit_test(sends_of_one_tag_arrive_in_order),
        cmocka_unit_test(messages_wait_until_they_are_asked_for),
        cmocka_unit_test(started_calls_may_be_waited_for_in_any_order),
        cmocka_unit_test(a_started_call_ends_beside_the_caller),
        cmocka_unit_test(groups_do_not_wait_for_one_another),
        cmocka_unit_test(threads_use_groups_of_their_own_at_the_same_time),
        cmocka_unit_test(a_group_whose_calls_are_under_way_is_not_freed),
        cmocka_unit_test(a_mesh_of_groups_sums_rows_and_columns),
        cmocka_unit_test(nobody_passes_a_barrier_before_the_last_has_come),
        cmocka_unit_test(alone_calls_copy),
    };
    return cmocka_run_group_tests(tests, open_world, close_world);
}
