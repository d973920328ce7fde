/* What the kernels call of files that need a library: in a build of the kernels alone nothing is traced, and names are
 * hashed by other numbers. */
#include "base/clock.h"
#include "base/philox.h"
#include "base/trace.h"

double trace_now(void) { return clock_seconds(); }

void trace_slice(Trace *t, const char *track, const char *name, double begin, double end) {
    (void)t, (void)track, (void)name, (void)begin, (void)end;
}

uint64_t hash_u64(const void *bytes, uint64_t count) { // FNV-1a
    const unsigned char *at = bytes;
    uint64_t h = 14695981039346656037u;
    for (uint64_t i = 0; i < count; i++) h = (h ^ at[i]) * 1099511628211u;
    return h ^ h >> 32;
}
