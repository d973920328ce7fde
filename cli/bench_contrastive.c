/* bifocal bench contrastive: the contrastive loss over the pairs of all processes, loss and gradients, beside the
 * multiply-adds that the machine reaches at the same time, and the memory it takes. */
#include "base/clock.h"
#include "base/philox.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "fusion/pair_ring.h"
#include "kernels/cpu/peak.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

typedef struct Arguments {
    double pairs, width, pieces, threads, rounds; // pieces 0: one a rank; threads 0: the cores, shared out
    int sigmoid;
    bool json;
} Arguments;

typedef struct Bench { // one run
    const Arguments *a;
    Comm *world;
    Backend *backend;
    int ranks, pieces;
    int64_t width, *rows;                      // (pieces)
    int64_t first, own;                        // of this rank's pairs, how many
    float *images, *texts;                     // (own, E)
    double *seconds;                           // (rounds), sorted
    double peak, work_space, grown, predicted; // GFLOP/s of all ranks; bytes of the rank that took most
} Bench;

static void usage(FILE *out) {
    fputs("usage: bifocal bench contrastive [--pairs N] [--width E] [OPTION]...\n\n"
          "The contrastive loss and its gradients over the pairs of all processes (under mpirun several, else one), "
          "in\n"
          "tiles: time, pairs/s, GFLOP/s beside what the same cores reach at the same time in multiply-adds, and bytes "
          "of\n"
          "memory on the process that takes most.\n\n"
          "  --pairs N               of all processes together (32768)\n"
          "  --width E               of a feature (512)\n"
          "  --kind softmax|sigmoid  of the loss (softmax)\n"
          "  --pieces N              that the pairs come in, a multiple of the processes (one for each)\n"
          "  --threads N             of a process; 0: the cores, shared out (0)\n"
          "  --rounds N              the median counts (3)\n"
          "  --json                  one JSON object on stdout\n",
          out);
}

// Rows of length 1, the same for every number of ranks.
static void draw(float *x, int64_t first, int64_t rows, int64_t width, uint64_t seed) {
    for (int64_t r = 0; r < rows; r++) {
        Rng rng = rng_for(seed, PURPOSE_TEST, (uint64_t)(first + r));
        float *row = x + r * width, squares = 0;
        for (int64_t i = 0; i < width; i++) {
            row[i] = (float)rng_u32(&rng) * 0x1p-31f - 1;
            squares += row[i] * row[i];
        }
        for (int64_t i = 0; i < width; i++) row[i] /= sqrtf(squares);
    }
}

static double resident_bytes(void) { // the most so far
    struct rusage usage_now;
    getrusage(RUSAGE_SELF, &usage_now);
    return (double)usage_now.ru_maxrss * 1024;
}

static double over_ranks(const Bench *b, double value, CommReduction reduction) {
    comm_all_reduce(b->world, &value, 1, COMM_F64, reduction, COMM_FAST, "figures");
    return value;
}

static double run_round(Bench *b) {
    int own_pieces = b->pieces / b->ranks;
    int64_t bytes = pair_ring_bytes(b->own, (int64_t)b->a->pairs, b->pieces, b->width);
    const float log_scale = 2.66f, bias = -10;
    double *loss = calloc((size_t)own_pieces, sizeof *loss);
    float *d_scale = calloc((size_t)own_pieces, sizeof *d_scale), *d_bias = calloc((size_t)own_pieces, sizeof *d_bias);
    check(loss && d_scale && d_bias);
    draw(b->images, b->first, b->own, b->width, 1);
    draw(b->texts, b->first, b->own, b->width, 2);
    PairRing ring = {.backend = b->backend,
                     .data = b->world,
                     .sigmoid = b->a->sigmoid,
                     .width = b->width,
                     .rows = b->rows,
                     .pieces = b->pieces,
                     .weight = 1,
                     .log_scale = &log_scale,
                     .bias = &bias};
    int64_t space = pair_ring_space(&ring);
    double before = resident_bytes();
    ring.space = aligned_alloc(64, (size_t)space);
    check(ring.space);
    comm_barrier(b->world, "a round begins");
    double start = clock_seconds();
    pair_ring(&ring, b->images, b->texts, loss, d_scale, d_bias);
    double seconds = over_ranks(b, clock_seconds() - start, COMM_MAX);
    b->grown = fmax(b->grown, over_ranks(b, resident_bytes() - before, COMM_MAX));
    b->work_space = over_ranks(b, (double)space, COMM_MAX);
    b->predicted = over_ranks(b, (double)bytes, COMM_MAX);
    free(ring.space);
    free(loss);
    free(d_scale);
    free(d_bias);
    return seconds;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(Bench *b) {
    for (int i = 0; i < (int)b->a->rounds; i++) {
        comm_barrier(b->world, "the peak is probed");
        b->peak = fmax(b->peak, over_ranks(b, peak_fma(b->backend, false, 0.2), COMM_SUM));
        b->seconds[i] = run_round(b);
    }
    qsort(b->seconds, (size_t)b->a->rounds, sizeof *b->seconds, by_value);
}

static void print(const Bench *b) {
    int rounds = (int)b->a->rounds, threads = threads_count(cpu_threads(b->backend));
    double n = b->a->pairs, seconds = b->seconds[rounds / 2];
    double flop = (b->a->sigmoid ? 6 : 8) * n * n * (double)b->width; // three products and, for the sums, one
    double rate = flop / seconds * 1e-9;
    if (b->a->json)
        printf("{\"pairs\": %.0f, \"width\": %lld, \"kind\": \"%s\", \"ranks\": %d, \"threads\": %d, \"pieces\": %d, "
               "\"seconds\": %.6g, \"fastest\": %.6g, \"slowest\": %.6g, \"pairs_per_second\": %.1f, \"gflops\": %.1f, "
               "\"peak_gflops\": %.1f, \"share\": %.4f, \"work_space_bytes\": %.0f, \"predicted_bytes\": %.0f, "
               "\"resident_bytes\": %.0f}\n",
               n, (long long)b->width, b->a->sigmoid ? "sigmoid" : "softmax", b->ranks, threads, b->pieces, seconds,
               b->seconds[0], b->seconds[rounds - 1], n / seconds, rate, b->peak, rate / b->peak, b->work_space,
               b->predicted, b->grown);
    else
        printf("%.0f pairs of width %lld, %s, %d process%s of %d thread%s, %d piece%s\n"
               "%.3f s (%.3f .. %.3f over %d rounds)  %.0f pairs/s  %.1f GFLOP/s, at most %.1f: %.0f %%\n"
               "work space %.1f MB a process (predicted %.1f MB); the process grew by %.1f MB\n",
               n, (long long)b->width, b->a->sigmoid ? "sigmoid" : "softmax", b->ranks, b->ranks == 1 ? "" : "es",
               threads, threads == 1 ? "" : "s", b->pieces, b->pieces == 1 ? "" : "s", seconds, b->seconds[0],
               b->seconds[rounds - 1], rounds, n / seconds, rate, b->peak, 100 * rate / b->peak, b->work_space * 1e-6,
               b->predicted * 1e-6, b->grown * 1e-6);
}

static bool open_bench(Bench *b, const Arguments *a, Comm *world, Log *log, Error *error) {
    int ranks = comm_size(world), rank = comm_rank(world), pieces = a->pieces > 0 ? (int)a->pieces : ranks;
    int threads = a->threads > 0 ? (int)a->threads : threads_available() / ranks;
    int64_t pairs = (int64_t)a->pairs;
    *b = (Bench){.a = a, .world = world, .ranks = ranks, .pieces = pieces, .width = (int64_t)a->width};
    if (pieces % ranks)
        return error_set(error, ERROR_USAGE, "--pieces %d does not share out over %d processes; %d would", pieces,
                         ranks, (pieces / ranks + 1) * ranks);
    b->backend = cpu_backend_new(threads > 0 ? threads : 1, NULL, log);
    b->rows = calloc((size_t)pieces, sizeof *b->rows);
    b->seconds = calloc((size_t)a->rounds, sizeof *b->seconds);
    for (int i = 0; b->rows && i < pieces; i++)
        b->rows[i] = comm_share(pairs, i + 1, pieces) - comm_share(pairs, i, pieces);
    b->first = comm_share(pairs, pieces / ranks * rank, pieces);
    b->own = comm_share(pairs, pieces / ranks * (rank + 1), pieces) - b->first;
    b->images = calloc((size_t)(b->own * b->width + 1), sizeof *b->images);
    b->texts = calloc((size_t)(b->own * b->width + 1), sizeof *b->texts);
    if (b->rows && b->seconds && b->images && b->texts) return true;
    return error_set(error, ERROR_FAILED, "no memory for %lld pairs; take fewer with --pairs", (long long)b->own);
}

static bool run(const Arguments *a, Error *error) {
    Log *log = log_new(LOG_WARNING, stderr);
    Comm *world = comm_world_new(log, error);
    Bench b = {0};
    bool ok = world && open_bench(&b, a, world, log, error);
    if (ok) measure(&b);
    if (ok && comm_rank(world) == 0) print(&b);
    backend_free(b.backend);
    free(b.rows);
    free(b.seconds);
    free(b.images);
    free(b.texts);
    comm_free(world);
    log_free(log);
    return ok;
}

static bool take_option(Arguments *a, int c, const char *value, Error *error) {
    switch (c) {
    case 'n':
        return option_number(value, 1, 1 << 24, "--pairs", &a->pairs, error);
    case 'w':
        return option_number(value, 1, 1 << 16, "--width", &a->width, error);
    case 'k':
        return option_choice(value, "softmax|sigmoid", "--kind", &a->sigmoid, error);
    case 'p':
        return option_number(value, 1, 1 << 16, "--pieces", &a->pieces, error);
    case 't':
        return option_number(value, 0, 4096, "--threads", &a->threads, error);
    case 'r':
        return option_number(value, 1, 1e6, "--rounds", &a->rounds, error);
    case 'j':
        a->json = true;
        return true;
    default:
        return false;
    }
}

static bool parse(Arguments *a, int argc, char **argv, bool *help, Error *error) {
    static const struct option options[] = {{"pairs", required_argument, 0, 'n'},
                                            {"width", required_argument, 0, 'w'},
                                            {"kind", required_argument, 0, 'k'},
                                            {"pieces", required_argument, 0, 'p'},
                                            {"threads", required_argument, 0, 't'},
                                            {"rounds", required_argument, 0, 'r'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    *a = (Arguments){.pairs = 32768, .width = 512, .rounds = 3};
    for (int c; (c = option_next(argc, argv, options, "bench contrastive", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (!take_option(a, c, optarg, error)) return false;
    }
    if (optind == argc) return true;
    return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal bench contrastive --help`", argv[optind]);
}

int bench_contrastive_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    bool help = false, ok = parse(&a, argc, argv, &help, &error);
    if (help) return usage(stdout), 0;
    if (ok && run(&a, &error)) return 0;
    fprintf(stderr, "bifocal bench contrastive: %s\n", error.message);
    return (int)error.kind;
}
