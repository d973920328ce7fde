/* What ranks that are processes on the stand-ins need: a world of its own for what the stand-in for NCCL sends, apart
 * from what is tested and watched, and a device that works while its host waits for other ranks. */
#include "tests/simt/nccl_stand_in.h"
#include "tests/simt/runtime.h"
#include "tests/simt/shim/host.h"
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <string>
#include <unistd.h>

static const pthread_t host_thread = pthread_self();

// The same ranks, who meet at a port further on; where there is one alone nothing travels.
static Comm *meet() {
    const char *ranks = getenv("BIFOCAL_RANKS"), *place = getenv("BIFOCAL_MASTER");
    if (!ranks || !place || atoi(ranks) < 2) return comm_self_new();
    std::string master = place;
    size_t port = master.find(':') + 1;
    std::string further = master.substr(0, port) + std::to_string(std::stoi(master.substr(port)) + 12000);
    Error error = {};
    setenv("BIFOCAL_MASTER", further.c_str(), 1);
    Comm *world = comm_world_new(nullptr, &error);
    setenv("BIFOCAL_MASTER", master.c_str(), 1);
    if (world) return world;
    fprintf(stderr, "%s\n", error.message);
    exit(1);
}

Comm *stand_in_world = meet();
bool stand_in_has_failed;
bool stand_in_holds(const void *memory, size_t bytes) { return simt_holds(memory, bytes); }

// (To wake up without a reason is what such a wait may do.)
extern "C" int __real_pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const timespec *);
extern "C" int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const timespec *until) {
    if (!pthread_equal(pthread_self(), host_thread)) return __real_pthread_cond_timedwait(c, m, until);
    pthread_mutex_unlock(m);
    runtime_go_on();
    usleep(20);
    pthread_mutex_lock(m);
    return 0;
}
