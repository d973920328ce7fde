/* See hosts.h. */
#include "train/hosts.h"
#include "base/affinity.h"
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct Seat { // of a rank
    char host[64];
    cpu_set_t processors; // that it may run on
} Seat;

static Seat own_seat(void) {
    Seat seat;
    memset(&seat, 0, sizeof seat);
    gethostname(seat.host, sizeof seat.host - 1);
    if (sched_getaffinity(0, sizeof seat.processors, &seat.processors)) CPU_ZERO(&seat.processors);
    return seat;
}

Hosts hosts_gather(Comm *world, Arena *memory) {
    int ranks = comm_size(world);
    Seat own = own_seat(), *all = arena_array(memory, Seat, ranks);
    Hosts hosts = {.names = arena_array(memory, const char *, ranks)};
    double share = 0;
    comm_all_gather(world, all, &own, ranks, sizeof own, "hosts");
    for (int r = 0; r < ranks; r++) {
        hosts.names[r] = all[r].host;
        hosts.local += !strcmp(all[r].host, own.host);
        hosts.local_rank += r < comm_rank(world) && !strcmp(all[r].host, own.host);
    }
    for (int c = 0; c < CPU_SETSIZE; c++) {
        int users = 0;
        for (int r = 0; r < ranks; r++) users += !strcmp(all[r].host, own.host) && CPU_ISSET(c, &all[r].processors);
        if (CPU_ISSET(c, &own.processors)) share += 1.0 / users;
    }
    hosts.threads = share < 1 ? 1 : (int)(share + 1e-9);
    return hosts;
}

int hosts_bind(Hosts *hosts, Comm *world, const DeviceSeat *device, const char *sys) {
    int ranks = comm_size(world), rank = comm_rank(world), place = 0, places = 0;
    Seat own = own_seat(), *all = calloc((size_t)ranks, sizeof *all);
    cpu_set_t beside;
    check(all);
    int node = device->gpus ? affinity_of_device(sys, device->pci, &beside) : -1;
    if (node >= 0) CPU_AND(&own.processors, &own.processors, &beside);
    if (!CPU_COUNT(&own.processors)) node = -1; // whoever started it keeps it elsewhere
    if (node < 0) CPU_ZERO(&own.processors);
    comm_all_gather(world, all, &own, ranks, sizeof own, "processors");
    for (int r = 0; r < ranks; r++) {
        bool alike = !strcmp(all[r].host, own.host) && CPU_EQUAL(&all[r].processors, &own.processors);
        place += alike && r < rank;
        places += alike;
    }
    free(all);
    if (node < 0) return -1;
    int processors = CPU_COUNT(&own.processors);
    affinity_share(sys, &own.processors, place, places);
    if (!affinity_bind(&own.processors)) return -1;
    hosts->threads = processors < places ? 1 : CPU_COUNT(&own.processors);
    return node;
}
