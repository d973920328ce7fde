/* Every access of a kernel: within bounds, and free of races. For each byte the last writer and the last readers are
 * kept, with the epoch (see Position) in which they came: accesses of one block are ordered by block barriers, of one
 * warp also by whole-warp barriers; blocks of one launch not at all; launches one after another. Atomics do not race
 * with each other. The idea is that of FastTrack (Flanagan and Freund 2009), with the clocks that a grid of blocks can
 * do with. */
#include "tests/simt/shim/engine.h"
#include <algorithm>
#include <cstdlib>
#include <functional>
#include <memory>
#include <sys/mman.h>
#include <vector>

enum { WARP = 32, ALIGNMENT = 256 };

struct Cell { // of one byte
    uint32_t write_epoch, read_epoch;
    uint32_t foreign_epoch; // of a read by another block than the last reader's
    uint16_t writer, write_warp_epoch;
    uint16_t reader, read_warp_epoch;
    bool write_atomic;
    bool read_by_lanes; // in that warp epoch by several threads of the reader's warp
    bool read_by_warps; // in that epoch by several warps
};

struct Region { // allocated memory or a shared array
    char *base;
    size_t bytes;
    const char *shared;                                       // name of a shared array; NULL: global memory
    uint32_t block_first;                                     // the last block that registered it
    std::unique_ptr<Cell, std::function<void(void *)>> cells; // one for each byte; untouched zeros cost nothing
    size_t reserved; // bytes of addresses, of which the front has memory; 0: an ordinary allocation
};

static std::vector<Region> regions;
static Region *last_hit;
static uint64_t accesses;
static Region dynamic_region = {nullptr, 0, "dynamic", 0, {nullptr, free}, 0};

uint64_t simt_accesses() { return accesses; }

// ---- regions ----

static void region_add(char *base, size_t bytes, const char *shared) {
    last_hit = nullptr;
    Cell *cells = static_cast<Cell *>(calloc(bytes + 1, sizeof(Cell)));
    if (!cells) abort();
    regions.push_back({base, bytes, shared, 0, {cells, free}, 0});
}

void *simt_allocate(size_t bytes) {
    size_t room = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    char *memory = static_cast<char *>(aligned_alloc(ALIGNMENT, room));
    if (!memory) abort();
    memset(memory, 0xff, room);
    region_add(memory, bytes, nullptr);
    return memory;
}

void simt_release(void *memory) {
    auto at = std::find_if(regions.begin(), regions.end(), [&](const Region &r) { return r.base == memory; });
    if (at == regions.end()) return;
    if (at->reserved)
        munmap(memory, at->reserved);
    else
        free(memory);
    last_hit = nullptr;
    regions.erase(at);
}

void simt_share(void *memory, size_t bytes) { region_add(static_cast<char *>(memory), bytes, "pinned"); }
void simt_unshare(void *memory) {
    auto at = std::find_if(regions.begin(), regions.end(), [&](const Region &r) { return r.base == memory; });
    last_hit = nullptr;
    if (at != regions.end()) regions.erase(at);
}

bool simt_holds(const void *memory, size_t bytes) {
    const char *at = static_cast<const char *>(memory);
    return std::any_of(regions.begin(), regions.end(), [&](const Region &r) {
        return !r.shared && at >= r.base && at <= r.base + r.bytes &&
               bytes <= static_cast<size_t>(r.base + r.bytes - at);
    });
}

// ---- addresses that memory is put behind later ----

static void *addresses(size_t bytes, int access) {
    void *memory = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

void *simt_reserve(size_t bytes) {
    char *base = static_cast<char *>(addresses(bytes, PROT_NONE));
    if (!base) return nullptr;
    size_t room = bytes * sizeof(Cell);
    Cell *cells = static_cast<Cell *>(addresses(room, PROT_READ | PROT_WRITE));
    if (!cells) {
        munmap(base, bytes);
        return nullptr;
    }
    last_hit = nullptr;
    regions.push_back({base, 0, nullptr, 0, {cells, [room](void *memory) { munmap(memory, room); }}, bytes});
    return base;
}

static Region *reserved_at(const char *at) {
    for (Region &r : regions)
        if (r.reserved && at >= r.base && at < r.base + r.reserved) return &r;
    abort();
}

void simt_back(void *address, size_t bytes) {
    Region *r = reserved_at(static_cast<char *>(address));
    if (r->base + r->bytes != address || mprotect(address, bytes, PROT_READ | PROT_WRITE)) abort();
    memset(address, 0xff, bytes);
    r->bytes += bytes;
}

void simt_unback(void *address, size_t bytes) {
    Region *r = reserved_at(static_cast<char *>(address));
    r->bytes = std::min(r->bytes, static_cast<size_t>(static_cast<char *>(address) - r->base));
    if (mprotect(address, bytes, PROT_NONE)) abort();
}

void *simt_shared_array(void *array, size_t bytes, const char *name) {
    auto at = std::find_if(regions.begin(), regions.end(), [&](const Region &r) { return r.base == array; });
    if (at == regions.end()) {
        region_add(static_cast<char *>(array), bytes, name);
        at = regions.end() - 1;
    }
    if (at->block_first != position.block_first) { // garbage, as in a new block
        at->block_first = position.block_first;
        memset(array, 0xff, bytes);
    }
    return array;
}

// Dynamic shared memory is allocated anew for each block.
void memory_begin_block(size_t dynamic_bytes) {
    if (dynamic_region.base) simt_release(dynamic_region.base);
    dynamic_region.base = nullptr;
    if (!dynamic_bytes) return;
    dynamic_region.base = static_cast<char *>(simt_allocate(dynamic_bytes));
    regions.back().shared = "dynamic";
}

void *simt_dynamic_shared() {
    if (!dynamic_region.base) simt_fault("dynamic shared memory, of which the launch asked none");
    return dynamic_region.base;
}

static Region *region_of(const char *at) {
    if (last_hit && at >= last_hit->base && at < last_hit->base + last_hit->bytes) return last_hit;
    for (Region &r : regions)
        if (at >= r.base && at < r.base + r.bytes) return last_hit = &r;
    return nullptr;
}

bool memory_is_shared(const void *at) {
    const Region *r = region_of(static_cast<const char *>(at));
    return r && r->shared;
}

// ---- faults ----

static const char *verb(AccessKind kind) {
    return kind == ACCESS_READ ? "reads" : kind == ACCESS_WRITE ? "writes" : "atomically changes";
}

[[noreturn]] static void out_of_bounds(const char *at, size_t bytes, AccessKind kind) {
    const Region *nearest = nullptr;
    for (const Region &r : regions)
        if (at >= r.base && (!nearest || r.base > nearest->base)) nearest = &r;
    if (nearest && at - nearest->base < static_cast<ptrdiff_t>(nearest->bytes + (1 << 20)))
        simt_fault("out of bounds: %s %zu bytes at byte %td of %s%s of %zu bytes", verb(kind), bytes,
                   at - nearest->base, nearest->shared ? "shared array " : "an allocation",
                   nearest->shared ? nearest->shared : "", nearest->bytes);
    simt_fault("out of bounds: %s %zu bytes at %p, where nothing was allocated", verb(kind), bytes,
               static_cast<const void *>(at));
}

[[noreturn]] static void race(const Region *r, size_t byte, AccessKind kind, const char *before, bool other_block,
                              int thread) {
    simt_fault("race on %s%s, byte %zu of %zu: %s what %s %s %s, with no %s between",
               r->shared ? "shared array " : "global memory", r->shared ? r->shared : "", byte, r->bytes, verb(kind),
               other_block ? "another block's thread" : "thread", simt_thread_name(thread), before,
               other_block                               ? "launch"
               : thread / WARP == position.thread / WARP ? "barrier of the warp or the block"
                                                         : "barrier of the block");
}

// ---- one byte ----

// Whether what thread `thread` did in `epoch` may come at the same time as what this thread does now.
static inline bool unordered(const Region *r, uint32_t epoch, uint16_t thread, uint16_t warp_epoch) {
    if (epoch < position.launch_first) return false;
    if (epoch < position.block_first) return !r->shared; // another block, with shared memory of its own
    if (epoch < position.epoch || thread == position.thread) return false;
    return thread / WARP != position.thread / WARP || warp_epoch == position.warp_epoch;
}

static inline void check_writer(const Region *r, const Cell *c, size_t byte, AccessKind kind) {
    if (kind == ACCESS_ATOMIC && c->write_atomic) return;
    if (unordered(r, c->write_epoch, c->writer, c->write_warp_epoch))
        race(r, byte, kind, "wrote", c->write_epoch < position.block_first, c->writer);
}

static inline void check_readers(const Region *r, const Cell *c, size_t byte, AccessKind kind) {
    bool now = c->read_epoch == position.epoch && c->read_epoch >= position.launch_first;
    bool lanes =
        c->read_by_lanes && c->reader / WARP == position.thread / WARP && c->read_warp_epoch == position.warp_epoch;
    if ((now && (c->read_by_warps || lanes)) || unordered(r, c->read_epoch, c->reader, c->read_warp_epoch))
        race(r, byte, kind, "(or one beside it) read", c->read_epoch < position.block_first, c->reader);
    if (!r->shared && c->foreign_epoch >= position.launch_first && c->foreign_epoch < position.block_first)
        race(r, byte, kind, "(or one beside it) read", true, c->reader);
}

static inline void note_read(Cell *c) {
    if (c->read_epoch != position.epoch) {
        if (c->read_epoch >= position.launch_first && c->read_epoch < position.block_first)
            c->foreign_epoch = c->read_epoch;
        c->read_epoch = position.epoch;
        c->read_by_lanes = c->read_by_warps = false;
    } else if (c->reader / WARP != position.thread / WARP) {
        c->read_by_warps = true;
        c->read_by_lanes = false;
    } else if (c->read_warp_epoch != position.warp_epoch) {
        c->read_by_lanes = false;
    } else if (c->reader != position.thread) {
        c->read_by_lanes = true;
    }
    c->reader = position.thread;
    c->read_warp_epoch = position.warp_epoch;
}

static inline void note_write(Cell *c, bool atomic) {
    c->write_epoch = position.epoch;
    c->writer = position.thread;
    c->write_warp_epoch = position.warp_epoch;
    c->write_atomic = atomic;
}

// Of this thread, or the parameters of the launch.
static inline bool on_stack(const void *at) {
    const char *p = static_cast<const char *>(at);
    return (p >= position.stack && p < position.stack_end) || (p >= position.parameters && p < position.parameters_end);
}

void memory_access(const void *address, size_t bytes, AccessKind kind) {
    const char *at = static_cast<const char *>(address);
    if (on_stack(at)) return;
    accesses++;
    Region *r = region_of(at);
    if (!r || at + bytes > r->base + r->bytes) out_of_bounds(at, bytes, kind);
    size_t first = static_cast<size_t>(at - r->base);
    for (size_t byte = first; byte < first + bytes; byte++) {
        Cell *c = r->cells.get() + byte;
        if (r->shared && kind != ACCESS_WRITE && c->write_epoch < position.block_first)
            simt_fault("shared array %s: reads byte %zu of %zu, which no thread of the block has written yet",
                       r->shared, byte, r->bytes);
        check_writer(r, c, byte, kind);
        if (kind == ACCESS_READ) {
            note_read(c);
        } else {
            check_readers(r, c, byte, kind);
            note_write(c, kind == ACCESS_ATOMIC);
        }
    }
}

// ---- what -fsanitize=thread calls ----

// The device takes an access of N bytes at a multiple of N only.
void simt_check_vector(const void *at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes)
        simt_fault("misaligned: a vector of %zu bytes at address %p", bytes, at);
}

void simt_check_global(const void *at) {
    if (memory_is_shared(at)) simt_fault("a store to shared memory by an instruction for global memory");
}

static inline void instrumented(void *at, size_t bytes, AccessKind kind, size_t alignment) {
    if (!position.inside) return;
    if (reinterpret_cast<uintptr_t>(at) % alignment && !on_stack(at))
        simt_fault("misaligned: %s %zu bytes at address %p", verb(kind), bytes, at);
    memory_access(at, bytes, kind);
}

#define TSAN_ACCESS(size)                                                                                              \
    void __tsan_read##size(void *at) { instrumented(at, size, ACCESS_READ, size); }                                    \
    void __tsan_write##size(void *at) { instrumented(at, size, ACCESS_WRITE, size); }                                  \
    void __tsan_unaligned_read##size(void *at) { instrumented(at, size, ACCESS_READ, size); }                          \
    void __tsan_unaligned_write##size(void *at) { instrumented(at, size, ACCESS_WRITE, size); }

extern "C" {
TSAN_ACCESS(1)
TSAN_ACCESS(2)
TSAN_ACCESS(4)
TSAN_ACCESS(8)
TSAN_ACCESS(16)
void __tsan_read_range(void *at, size_t bytes) { instrumented(at, bytes, ACCESS_READ, 1); }
void __tsan_write_range(void *at, size_t bytes) { instrumented(at, bytes, ACCESS_WRITE, 1); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void *__tsan_memcpy(void *to, const void *from, size_t bytes) {
    __tsan_read_range(const_cast<void *>(from), bytes);
    __tsan_write_range(to, bytes);
    return memcpy(to, from, bytes);
}
void *__tsan_memmove(void *to, const void *from, size_t bytes) {
    __tsan_read_range(const_cast<void *>(from), bytes);
    __tsan_write_range(to, bytes);
    return memmove(to, from, bytes);
}
void *__tsan_memset(void *to, int value, size_t bytes) {
    __tsan_write_range(to, bytes);
    return memset(to, value, bytes);
}
}

// ---- atomics ----

template <class T, class F> static T atomically(T *at, F change) {
    if (position.inside) memory_access(at, sizeof *at, ACCESS_ATOMIC);
    T old = *at;
    *at = change(old);
    return old;
}
int atomicAdd(int *at, int x) {
    return atomically(at,
                      [=](int old) { return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(x)); });
}
unsigned atomicAdd(unsigned *at, unsigned x) {
    return atomically(at, [=](unsigned old) { return old + x; });
}
unsigned long long atomicAdd(unsigned long long *at, unsigned long long x) {
    return atomically(at, [=](unsigned long long old) { return old + x; });
}
float atomicAdd(float *at, float x) {
    return atomically(at, [=](float old) { return old + x; });
}
int atomicMax(int *at, int x) {
    return atomically(at, [=](int old) { return std::max(old, x); });
}
unsigned long long atomicMin(unsigned long long *at, unsigned long long x) {
    return atomically(at, [=](unsigned long long old) { return std::min(old, x); });
}
