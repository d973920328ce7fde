/* See regions.h. */
#include "kernels/cuda/host/regions.h"
#include "base/error.h"
#include <stdio.h>
#include <stdlib.h>

enum { MAY_GROW = 1 << 20 }; // bytes: smaller blocks get just the addresses they need

typedef struct Piece {
    size_t bytes;
    uint64_t handle;
} Piece;

typedef struct Region {
    uintptr_t address;
    size_t reserved, backed; // bytes
    Piece *pieces;
    size_t count;
    bool grew;
} Region;

struct Regions {
    RegionDriver driver;
    size_t most;
    Region *items;
    size_t count;
};

static size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

Regions *regions_new(const RegionDriver *driver, size_t most) {
    Regions *r = calloc(1, sizeof *r);
    check(r && driver->granularity > 0);
    r->driver = *driver;
    r->most = round_up(most, driver->granularity);
    return r;
}

// Backs another `bytes` behind what is backed.
static bool back(Regions *r, Region *region, size_t bytes) {
    if (bytes > region->reserved - region->backed) return false;
    Piece piece = {.bytes = bytes};
    if (!r->driver.back(r->driver.context, region->address + region->backed, bytes, &piece.handle)) return false;
    region->pieces = realloc(region->pieces, (region->count + 1) * sizeof piece);
    check(region->pieces);
    region->pieces[region->count++] = piece;
    region->backed += bytes;
    return true;
}

static void close_region(Regions *r, Region *region) {
    uintptr_t at = region->address;
    for (size_t i = 0; i < region->count; at += region->pieces[i++].bytes)
        r->driver.unback(r->driver.context, at, region->pieces[i].bytes, region->pieces[i].handle);
    r->driver.unreserve(r->driver.context, region->address, region->reserved);
    free(region->pieces);
}

void regions_free(Regions *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) close_region(r, &r->items[i]);
    free(r->items);
    free(r);
}

// Where address space is short, a large block gets no more than it needs.
static bool reserve(Regions *r, Region *region, size_t bytes) {
    region->reserved = bytes >= MAY_GROW && r->most > bytes ? r->most : bytes;
    if (r->driver.reserve(r->driver.context, region->reserved, &region->address)) return true;
    if (region->reserved == bytes) return false;
    region->reserved = bytes;
    return r->driver.reserve(r->driver.context, bytes, &region->address);
}

void *regions_allocate(Regions *r, size_t bytes) {
    size_t size = round_up(bytes ? bytes : 1, r->driver.granularity);
    Region region = {0};
    if (size < bytes || !reserve(r, &region, size)) return NULL;
    if (!back(r, &region, size)) {
        close_region(r, &region);
        return NULL;
    }
    r->items = realloc(r->items, (r->count + 1) * sizeof region);
    check(r->items);
    r->items[r->count++] = region;
    return (void *)region.address; // NOLINT(performance-no-int-to-ptr): addresses of another memory
}

static Region *region_of(Regions *r, const void *memory) {
    for (size_t i = 0; i < r->count; i++)
        if (r->items[i].address == (uintptr_t)memory) return &r->items[i];
    return NULL;
}

bool regions_extend(Regions *r, void *memory, size_t bytes, size_t more) {
    Region *region = region_of(r, memory);
    check(region && bytes <= region->backed);
    if (more > region->reserved - bytes) return false;
    size_t needed = round_up(bytes + more, r->driver.granularity);
    if (needed > region->backed && !back(r, region, needed - region->backed)) return false;
    region->grew = true;
    return true;
}

void regions_release(Regions *r, void *memory) {
    if (!memory) return;
    Region *region = region_of(r, memory);
    check(region);
    close_region(r, region);
    *region = r->items[--r->count];
}

static size_t sum(const Regions *r, bool growing_only) {
    size_t bytes = 0;
    for (size_t i = 0; i < r->count; i++)
        if (!growing_only || r->items[i].grew) bytes += r->items[i].backed;
    return bytes;
}

size_t regions_held(const Regions *r) { return sum(r, false); }
size_t regions_growing(const Regions *r) { return sum(r, true); }

const char *regions_explain(char *buffer, size_t size, MemoryState m) {
    const double gib = 0x1p30;
    int used =
        snprintf(buffer, size,
                 "out of GPU memory: another %.3f GiB were wanted, %.3f of %.1f GiB are free, this process holds "
                 "%.3f GiB",
                 (double)m.wanted / gib, (double)m.free / gib, (double)m.total / gib, (double)m.held / gib);
    if (used < 0 || (size_t)used >= size) return buffer;
    size_t rest = size - (size_t)used;
    if (m.growing)
        snprintf(
            buffer + used, rest,
            ", %.3f of them for what a step computes; a step of at most %d %% of this one's samples would fit: take a "
            "smaller batch, more train.microbatches or train.recompute",
            (double)m.growing / gib, (int)(100 * (double)(m.growing + m.free) / (double)(m.growing + m.wanted)));
    else
        snprintf(buffer + used, rest, "; what fits is a model whose parameters and optimizer take %.3f GiB less",
                 m.wanted > m.free ? (double)(m.wanted - m.free) / gib : 0.0);
    return buffer;
}
