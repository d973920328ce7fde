/* bifocal bench comm: the speed of collectives between the processes of mpirun, beside a bare MPI program's. */
#include "cli/commands.h"
#include "cli/options.h"
#include "kernels/comm/bench_comm.h"
#include <stdio.h>

typedef struct Arguments {
    BenchComm bench;
    bool json;
} Arguments;

static void usage(FILE *out) {
    fputs("usage: bifocal bench comm [--bytes N] [--seconds S] [--json], started by mpirun -np PROCESSES\n\n"
          "Collectives on f32 arrays of 4 KB to 64 MB: time of a call (the slowest rank's; median, least and greatest "
          "of the\n"
          "rounds) and GB/s that each rank must send at the least. MPI_Allreduce is what a bare MPI program reaches, "
          "called in\n"
          "turn with ours.\n\n"
          "  --bytes N    of the array, this size alone\n"
          "  --seconds S  for each figure (0.5)\n"
          "  --json       one JSON object a line on stdout\n",
          out);
}

static void print_row(void *context, const BenchCommRow *r) {
    Arguments *a = context;
    if (a->json)
        printf("{\"call\": \"%s\", \"bytes\": %lld, \"rounds\": %d, \"seconds\": %.9g, \"fastest\": %.9g, \"slowest\": "
               "%.9g, \"bus_gbytes\": %.3f}\n",
               r->call, (long long)r->bytes, r->rounds, r->seconds, r->fastest, r->slowest, r->gbytes);
    else
        printf("%10lld bytes  %-22s  %10.1f us (%.1f .. %.1f over %d rounds)  %7.2f GB/s\n", (long long)r->bytes,
               r->call, r->seconds * 1e6, r->fastest * 1e6, r->slowest * 1e6, r->rounds, r->gbytes);
    fflush(stdout);
}

static bool parse(Arguments *a, int argc, char **argv, bool *help, Error *error) {
    static const struct option options[] = {{"bytes", required_argument, 0, 'b'},
                                            {"seconds", required_argument, 0, 's'},
                                            {"json", no_argument, 0, 'j'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    double bytes = 0;
    *a = (Arguments){.bench = {.seconds = 0.5, .row = print_row, .context = a}};
    for (int c; (c = option_next(argc, argv, options, "bench comm", error)) != -1;) {
        if ((*help = c == 'h')) return true;
        if (c == '?') return false;
        if (c == 'j') a->json = true;
        if (c == 's' && !option_number(optarg, 0.001, 60, "--seconds", &a->bench.seconds, error)) return false;
        if (c == 'b' && !option_number(optarg, 4, 4e9, "--bytes", &bytes, error)) return false;
    }
    a->bench.bytes = (int64_t)bytes / 4 * 4;
    if (optind == argc) return true;
    return error_set(error, ERROR_USAGE, "'%s' is not an option; see `bifocal bench comm --help`", argv[optind]);
}

static bool run(const Arguments *a, Error *error) {
    Log *log = log_new(LOG_INFO, stderr);
    Comm *world = comm_world_new(log, error);
    bool several = comm_size(world) > 1;
    if (several)
        bench_comm(world, &a->bench);
    else if (world)
        error_set(error, ERROR_USAGE, "there is one process only; start several: mpirun -np 2 bifocal bench comm");
    comm_free(world);
    log_free(log);
    return several;
}

int bench_comm_main(int argc, char **argv) {
    Arguments a;
    Error error = {0};
    bool help = false, ok = parse(&a, argc, argv, &help, &error);
    if (help) return usage(stdout), 0;
    if (ok && run(&a, &error)) return 0;
    fprintf(stderr, "bifocal bench comm: %s\n", error.message);
    return (int)error.kind;
}
