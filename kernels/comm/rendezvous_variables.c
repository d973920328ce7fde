/* What the environment says about where ranks meet. See rendezvous.h. */
#include "base/philox.h"
#include "kernels/comm/rendezvous.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SECONDS = 60,
    FIRST_PORT = 20000, // for Slurm's jobs: above most services, below what Linux gives to outgoing connections
    PORTS = 12768,
};

static bool whole_number(const char *text, int least, int *out) {
    char *end;
    long number = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || number < least || number > 1 << 24) return false;
    *out = (int)number;
    return true;
}

// run: what no other run has. Ranks of another number, or another version of the program, are strangers.
static void make_token(Rendezvous *r, const char *run) {
    char text[512];
    snprintf(text, sizeof text, "0 bifocal %s, %d ranks, %s", BIFOCAL_VERSION, r->size, run);
    for (int half = 0; half < 2; half++) {
        text[0] = (char)('0' + half);
        uint64_t hash = hash_u64(text, strlen(text));
        memcpy(r->token + half * (int)sizeof hash, &hash, sizeof hash);
    }
}

static bool patience(Rendezvous *r) {
    const char *text = getenv("BIFOCAL_START_SECONDS");
    int seconds = SECONDS;
    if (text && !whole_number(text, 1, &seconds)) return false;
    r->seconds = seconds;
    return true;
}

static bool split_master(Rendezvous *r, const char *master) {
    const char *colon = master ? strrchr(master, ':') : NULL;
    if (!colon || colon == master || (size_t)(colon - master) >= sizeof r->host) return false;
    memcpy(r->host, master, (size_t)(colon - master));
    r->local = !strcmp(r->host, "localhost") || !strncmp(r->host, "127.", 4);
    return whole_number(colon + 1, 1, &r->port) && r->port < 1 << 16;
}

bool rendezvous_of_variables(Rendezvous *out, int *ranks, Error *error) {
    const char *count = getenv("BIFOCAL_RANKS"), *rank = getenv("BIFOCAL_RANK"), *master = getenv("BIFOCAL_MASTER");
    *out = (Rendezvous){0};
    *ranks = 0;
    if (!count || !*count) return true;
    if (!whole_number(count, 1, &out->size))
        return error_set(error, ERROR_USAGE, "BIFOCAL_RANKS is '%s'; it is the number of processes of the run", count);
    *ranks = out->size;
    if (out->size == 1) return true;
    if (!whole_number(rank, 0, &out->rank) || out->rank >= out->size)
        return error_set(error, ERROR_USAGE, "BIFOCAL_RANKS is %d, but BIFOCAL_RANK is '%s'; it counts from 0 to %d",
                         out->size, rank ? rank : "", out->size - 1);
    if (!split_master(out, master))
        return error_set(error, ERROR_USAGE,
                         "BIFOCAL_MASTER is '%s'; it is HOST:PORT, where rank 0 listens for the other ranks",
                         master ? master : "");
    if (!patience(out))
        return error_set(error, ERROR_USAGE, "BIFOCAL_START_SECONDS is '%s'; it is a whole number of seconds",
                         getenv("BIFOCAL_START_SECONDS"));
    make_token(out, master);
    return true;
}

bool slurm_first_node(const char *list, char *out, size_t size) {
    size_t n = 0;
    for (; *list && *list != ',' && n + 1 < size; list++) {
        if (*list != '[') {
            out[n++] = *list;
            continue;
        }
        for (list++; *list && !strchr("-,]", *list) && n + 1 < size; list++) out[n++] = *list;
        list = strchr(list, ']');
        if (!list) return false;
    }
    out[n] = '\0';
    return n > 0 && (!*list || *list == ',');
}

static const char *either(const char *variable, const char *other) {
    const char *text = getenv(variable);
    return text ? text : getenv(other);
}

bool rendezvous_of_slurm(Rendezvous *out, int ranks) {
    const char *job = either("SLURM_JOB_ID", "SLURM_JOBID"), *step = either("SLURM_STEP_ID", "SLURM_STEPID");
    const char *nodes = either("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
               *spare = getenv("SLURM_LAUNCH_NODE_IPADDR");
    char run[128];
    int machines = 0;
    *out = (Rendezvous){.size = ranks};
    if (!job || !step || !nodes || !slurm_first_node(nodes, out->host, sizeof out->host)) return false;
    if (!whole_number(getenv("SLURM_PROCID"), 0, &out->rank) || out->rank >= ranks || !patience(out)) return false;
    snprintf(out->spare, sizeof out->spare, "%s", spare ? spare : "");
    out->local = whole_number(getenv("SLURM_STEP_NUM_NODES"), 1, &machines) && machines == 1;
    snprintf(run, sizeof run, "job %s, step %s", job, step);
    out->port = FIRST_PORT + (int)(hash_u64(run, strlen(run)) % PORTS);
    make_token(out, run);
    return true;
}
