/* bifocal launch: this program as several ranks, on this machine or on some, through Open MPI's mpirun; goes on from
 * the last checkpoint after a failure, where it is asked to. */
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/processes.h"
#include "base/files.h"
#include "base/threads.h"
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_RANKS = 4096, MOST_RESTARTS = 1000, MOST_FLAGS = 32 };

typedef struct Launch {
    int ranks, restarts;
    const char *hosts; // NULL: this machine
    char **words;      // of the ranks: "train", ...; ends with NULL
    int status;        // -1: go on
} Launch;

static void usage(FILE *out) {
    fputs(
        "usage: bifocal launch -n N [--restarts K] [--hosts LIST] [--] train CONFIG [ARGUMENT]...\n\n"
        "  -n, --ranks N      processes that work together, through Open MPI's mpirun\n"
        "  --restarts K       after a failure go on from the last checkpoint (--resume), K times at the most\n"
        "  --hosts LIST       on these machines, as mpirun's --host takes them: node1:4,node2:4\n\n"
        "SIGINT, SIGTERM or SIGUSR1 to this process or to any rank: all agree on a step, save and leave; a second one\n"
        "to this process ends them at once. The exit status is the run's.\n",
        out);
}

static int wrong(const char *message) {
    fprintf(stderr, "bifocal launch: %s; see `bifocal launch --help`\n", message);
    return 2;
}

static bool take(Launch *l, int letter, Error *error) {
    double value;
    if (letter == 'n') {
        if (!option_number(optarg, 1, MOST_RANKS, "-n", &value, error)) return false;
        l->ranks = (int)value;
        return l->ranks == value || error_set(error, ERROR_USAGE, "-n '%s' is not a whole number", optarg);
    }
    if (letter == 'r') {
        if (!option_number(optarg, 0, MOST_RESTARTS, "--restarts", &value, error)) return false;
        l->restarts = (int)value;
        return true;
    }
    if (letter == 'o') l->hosts = optarg;
    if (letter == 'h') {
        usage(stdout);
        l->status = 0;
    }
    return letter != '?';
}

static void parse(Launch *l, int argc, char **argv) {
    static const struct option options[] = {{"ranks", required_argument, 0, 'n'},
                                            {"restarts", required_argument, 0, 'r'},
                                            {"hosts", required_argument, 0, 'o'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    Error error = {0};
    *l = (Launch){.status = -1};
    for (int c; l->status < 0 && (c = option_leading(argc, argv, "n:", options, "launch", &error)) != -1;)
        if (!take(l, c, &error)) {
            fprintf(stderr, "bifocal launch: %s\n", error.message);
            l->status = (int)error.kind;
        }
    if (l->status >= 0) return;
    l->words = argv + optind;
    if (!l->ranks)
        l->status = wrong("how many ranks? -n N is missing");
    else if (!*l->words)
        l->status = wrong("nothing to launch: train CONFIG ... is missing");
    else if (strcmp(*l->words, "train") != 0)
        l->status = wrong("only `train` runs as several processes");
}

// ---- the command line of mpirun ----

// The file that `name` would run; false where the PATH has none.
static bool find_program(const char *name, char out[PATH_MAX]) {
    const char *path = getenv("PATH");
    for (const char *at = path ? path : ""; *at; at += *at == ':') {
        int size = (int)strcspn(at, ":");
        int n = snprintf(out, PATH_MAX, "%.*s/%s", size, at, name);
        if (size && n < PATH_MAX && file_is_regular(out) && access(out, X_OK) == 0) return true;
        at += size;
    }
    return false;
}

// Not bound to cores: each rank has several threads, and what they may share is the run's to say.
static int mpirun_flags(const Launch *l, const char **out) {
    static const char *const always[] = {"--quiet", "--bind-to", "none", "--oversubscribe"};
    static const char *const one_machine[] = {"--mca", "btl", "self,vader"};
    // mpirun and its daemons notice in half a minute, not in some, that a machine is out of reach.
    static const char *const more[] = {"--mca", "oob_tcp_keepalive_time",   "10",
                                       "--mca", "oob_tcp_keepalive_intvl",  "2",
                                       "--mca", "oob_tcp_keepalive_probes", "5"};
    int n = 0;
    for (size_t i = 0; i < sizeof always / sizeof *always; i++) out[n++] = always[i];
    if (geteuid() == 0) out[n++] = "--allow-run-as-root";
    if (l->hosts) {
        out[n++] = "--host";
        out[n++] = l->hosts;
        for (size_t i = 0; i < sizeof more / sizeof *more; i++) out[n++] = more[i];
    } else
        for (int i = 0; i < 3; i++) out[n++] = one_machine[i];
    return n;
}

// What to run: owned array (its strings are not), or NULL.
static const char **command_line(const Launch *l, bool resume, char program[PATH_MAX], char mpirun[PATH_MAX],
                                 char ranks[16]) {
    const char *flags[MOST_FLAGS];
    int words = 0, n = 0;
    while (l->words[words]) words++;
    const char **line = calloc((size_t)words + MOST_FLAGS + 8, sizeof *line);
    check(line);
    if (l->ranks > 1 || l->hosts) {
        line[n++] = mpirun;
        line[n++] = "-np";
        line[n++] = ranks;
        for (int i = 0, count = mpirun_flags(l, flags); i < count; i++) line[n++] = flags[i];
    }
    line[n++] = program;
    line[n++] = l->words[0];
    if (resume) line[n++] = "--resume";
    for (int i = 1; i < words; i++) line[n++] = l->words[i];
    return line;
}

static bool prepare(const Launch *l, char program[PATH_MAX], char mpirun[PATH_MAX], char ranks[16], Error *error) {
    ssize_t n = readlink("/proc/self/exe", program, PATH_MAX - 1);
    if (n <= 0) return error_set_errno(error, ERROR_FAILED, "/proc/self/exe: cannot find this program's own file");
    program[n] = 0;
    snprintf(ranks, 16, "%d", l->ranks);
    if ((l->ranks > 1 || l->hosts) && !find_program("mpirun", mpirun))
        return error_set(error, ERROR_USAGE,
                         "no mpirun on the PATH: install Open MPI (Debian: apt install openmpi-bin), or put its bin "
                         "folder on the PATH");
    return true;
}

// ---- runs, one after another ----

// Whether another try could end differently: not after wrong usage, and not where somebody asked it to stop.
static bool worth_another(int status) {
    static const int asked[] = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        if (status == 128 + asked[i]) return false;
    return status != 0 && status != 2;
}

// What the ranks could not say themselves: a signal ends before anything can be said.
static void say_end(int status) {
    if (status > 128)
        fprintf(stderr, "bifocal launch: the run ended with status %d: a rank was ended by signal %d (%s)\n", status,
                status - 128, strsignal(status - 128));
    else
        fprintf(stderr, "bifocal launch: the run ended with status %d\n", status);
}

static int run_with_restarts(const Launch *l, Error *error) {
    char program[PATH_MAX], mpirun[PATH_MAX], ranks[16];
    if (!prepare(l, program, mpirun, ranks, error)) return -1;
    processes_prepare();
    for (int restart = 0;; restart++) {
        const char **line = command_line(l, restart > 0, program, mpirun, ranks);
        bool asked = false;
        int status = processes_run(line, l->hosts ? program : NULL, &asked, error);
        free(line);
        if (status < 0 || asked || !worth_another(status)) return status;
        say_end(status);
        if (restart == l->restarts) return status;
        fprintf(stderr, "bifocal launch: going on from the last checkpoint, restart %d of %d\n", restart + 1,
                l->restarts);
    }
}

int launch_main(int argc, char **argv) {
    Launch l;
    Error error = {0};
    parse(&l, argc, argv);
    if (l.status >= 0) return l.status;
    int status = run_with_restarts(&l, &error);
    if (status >= 0) return status;
    fprintf(stderr, "bifocal launch: %s\n", error.message);
    return (int)error.kind;
}
