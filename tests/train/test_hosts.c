/* What ranks of one machine take of it: its processors, shared evenly. */
#include "base/affinity.h"
#include "base/files.h"
#include "base/threads.h"
#include "tests/support/ranks.h"
#include "tests/support/test.h"
#include "train/hosts.h"
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void look(int rank, Comm *world, void *argument) {
    const int *ranks = argument;
    char host[64] = "";
    Arena *memory = arena_new(1024);
    Hosts hosts = hosts_gather(world, memory);
    int fair = threads_available() / *ranks;
    gethostname(host, sizeof host - 1);
    (void)rank;
    assert_int_equal(hosts.local, *ranks);
    assert_int_equal(hosts.threads, fair < 1 ? 1 : fair);
    for (int r = 0; r < *ranks; r++) assert_string_equal(hosts.names[r], host);
    arena_free(memory);
}

static void ranks_of_one_machine_share_its_processors(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) ranks_run(ranks, look, &ranks);
}

// ---- beside a GPU ----

// A machine of two nodes, the first two processors that this process may have: one each, or both on the first.
static void write_text(const char *sys, const char *name, const char *text) {
    Error error = {0};
    char *path = temporary_path(sys, name), *slash = strrchr(path, '/');
    *slash = 0;
    assert_done(folder_create(path, &error), &error);
    *slash = '/';
    assert_done(file_write(path, text, strlen(text), &error), &error);
    free(path);
}

typedef struct Machine {
    char *sys;
    int processors[2]; // numbers
} Machine;

static bool make_machine(Machine *m) {
    cpu_set_t all;
    int found = 0;
    char text[32], name[64];
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    for (int c = 0; c < CPU_SETSIZE && found < 2; c++)
        if (CPU_ISSET(c, &all)) m->processors[found++] = c;
    if (found < 2) return false;
    m->sys = temporary_new();
    for (int gpu = 0; gpu < 3; gpu++) { // the last one's node is not told
        snprintf(name, sizeof name, "bus/pci/devices/0000:0%d:00.0/numa_node", gpu);
        snprintf(text, sizeof text, "%d\n", gpu < 2 ? gpu : -1);
        write_text(m->sys, name, text);
        snprintf(name, sizeof name, "devices/system/node/node%d/cpulist", gpu);
        snprintf(text, sizeof text, "%d\n", m->processors[gpu % 2]);
        if (gpu < 2) write_text(m->sys, name, text);
    }
    return true;
}

// Rank r has GPU r: those of the first two have nodes of their own, the third one's is not known.
static void sit_beside(int rank, Comm *world, void *argument) {
    const Machine *m = argument;
    Arena *memory = arena_new(1024);
    Hosts hosts = hosts_gather(world, memory);
    DeviceSeat seat = {.gpu = rank, .gpus = 3};
    int threads = hosts.threads;
    snprintf(seat.pci, sizeof seat.pci, "0000:0%d:00.0", rank);
    int node = hosts_bind(&hosts, world, &seat, m->sys);
    assert_int_equal(node, rank < 2 ? rank : -1);
    assert_int_equal(hosts.threads, rank < 2 ? 1 : threads);
    arena_free(memory);
}

static void ranks_keep_to_the_processors_beside_their_gpus(void **state) {
    (void)state;
    Machine m;
    cpu_set_t all;
    if (!make_machine(&m)) skip();
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    ranks_run(3, sit_beside, &m);
    assert_true(affinity_bind(&all)); // they were threads of one process
    temporary_free(m.sys);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ranks_of_one_machine_share_its_processors),
                                       cmocka_unit_test(ranks_keep_to_the_processors_beside_their_gpus)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
