/* See hosts.h. */
#include "train/hosts.h"
#include <sched.h>
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
    }
    for (int c = 0; c < CPU_SETSIZE; c++) {
        int users = 0;
        for (int r = 0; r < ranks; r++) users += !strcmp(all[r].host, own.host) && CPU_ISSET(c, &all[r].processors);
        if (CPU_ISSET(c, &own.processors)) share += 1.0 / users;
    }
    hosts.threads = share < 1 ? 1 : (int)(share + 1e-9);
    return hosts;
}
