/* Device memory: regions (host/regions.h) on CUDA's virtual memory management. The driver's functions are looked up at
 * run time, so that the module does not link the driver. */
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/host/work_space.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>

enum {
    FIRST_SCRATCH = WORK_SCRATCH_FIRST,
    SCRATCH_ALIGNMENT = WORK_SCRATCH_ALIGNMENT,
    FIRST_BLOCK = WORK_BLOCK_FIRST
}; // bytes

typedef struct DriverCalls {
    CUresult (*reserve)(CUdeviceptr *, size_t, size_t, CUdeviceptr, unsigned long long);
    CUresult (*unreserve)(CUdeviceptr, size_t);
    CUresult (*create)(CUmemGenericAllocationHandle *, size_t, const CUmemAllocationProp *, unsigned long long);
    CUresult (*release)(CUmemGenericAllocationHandle);
    CUresult (*map)(CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
    CUresult (*unmap)(CUdeviceptr, size_t);
    CUresult (*allow)(CUdeviceptr, size_t, const CUmemAccessDesc *, size_t);
    CUresult (*granularity)(size_t *, const CUmemAllocationProp *, CUmemAllocationGranularity_flags);
} DriverCalls;

struct CudaMemory {
    DriverCalls calls;
    int device;
    Regions *regions;
    CudaBlock scratch[BACKEND_LANES];
    size_t scratch_used[BACKEND_LANES]; // bytes
};

static bool find(const char *name, void *function, Error *error) {
    enum cudaDriverEntryPointQueryResult found;
    void **place = function;
    if (cudaGetDriverEntryPointByVersion(name, place, 12000, cudaEnableDefault, &found) == cudaSuccess &&
        found == cudaDriverEntryPointSuccess && *place)
        return true;
    (void)cudaGetLastError(); // it is reported here
    return error_set(error, ERROR_USAGE, "the driver has no %s: update it", name);
}

static bool find_calls(DriverCalls *c, Error *error) {
    return find("cuMemAddressReserve", &c->reserve, error) && find("cuMemAddressFree", &c->unreserve, error) &&
           find("cuMemCreate", &c->create, error) && find("cuMemRelease", &c->release, error) &&
           find("cuMemMap", &c->map, error) && find("cuMemUnmap", &c->unmap, error) &&
           find("cuMemSetAccess", &c->allow, error) && find("cuMemGetAllocationGranularity", &c->granularity, error);
}

static CUmemAllocationProp kind_of(const CudaMemory *m) {
    return (CUmemAllocationProp){.type = CU_MEM_ALLOCATION_TYPE_PINNED,
                                 .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = m->device}};
}

static bool reserve(void *context, size_t bytes, uintptr_t *address) {
    const CudaMemory *m = context;
    CUdeviceptr at = 0;
    if (m->calls.reserve(&at, bytes, 0, 0, 0) != CUDA_SUCCESS) return false;
    *address = (uintptr_t)at;
    return true;
}

static void unreserve(void *context, uintptr_t address, size_t bytes) {
    const CudaMemory *m = context;
    (void)m->calls.unreserve((CUdeviceptr)address, bytes);
}

static bool back(void *context, uintptr_t address, size_t bytes, uint64_t *piece) {
    const CudaMemory *m = context;
    CUmemAllocationProp kind = kind_of(m);
    CUmemAccessDesc access = {.location = kind.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    if (m->calls.create(&handle, bytes, &kind, 0) != CUDA_SUCCESS) return false;
    if (m->calls.map((CUdeviceptr)address, bytes, 0, handle, 0) != CUDA_SUCCESS) {
        (void)m->calls.release(handle);
        return false;
    }
    if (m->calls.allow((CUdeviceptr)address, bytes, &access, 1) != CUDA_SUCCESS) {
        (void)m->calls.unmap((CUdeviceptr)address, bytes);
        (void)m->calls.release(handle);
        return false;
    }
    *piece = handle;
    return true;
}

static void unback(void *context, uintptr_t address, size_t bytes, uint64_t piece) {
    const CudaMemory *m = context;
    (void)m->calls.unmap((CUdeviceptr)address, bytes);
    (void)m->calls.release((CUmemGenericAllocationHandle)piece);
}

bool cuda_memory_open(CudaState *s, Error *error) {
    CudaMemory *m = calloc(1, sizeof *m);
    check(m);
    s->memory = m;
    m->device = s->gpu.device;
    if (!find_calls(&m->calls, error)) return false;
    RegionDriver driver = {m, 0, reserve, unreserve, back, unback};
    CUmemAllocationProp kind = kind_of(m);
    if (m->calls.granularity(&driver.granularity, &kind, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) != CUDA_SUCCESS)
        return error_set(error, ERROR_FAILED, "GPU %d has no virtual memory management", m->device);
    m->regions = regions_new(&driver, s->gpu.memory);
    m->scratch[0] = (CudaBlock){regions_allocate(m->regions, FIRST_SCRATCH), FIRST_SCRATCH};
    if (!m->scratch[0].memory)
        return error_set(error, ERROR_FAILED, "GPU %d (%s) has no memory left", m->device, s->gpu.name);
    return true;
}

void cuda_memory_close(CudaState *s) {
    if (!s->memory) return;
    regions_free(s->memory->regions);
    free(s->memory);
    s->memory = NULL;
}

static void complain(const CudaState *s, size_t wanted) {
    char text[512];
    MemoryState m = {
        .wanted = wanted, .held = regions_held(s->memory->regions), .growing = regions_growing(s->memory->regions)};
    (void)cudaMemGetInfo(&m.free, &m.total);
    log_error(s->log, "GPU %d (%s): %s", s->gpu.device, s->gpu.name, regions_explain(text, sizeof text, m));
}

static void *allocate(void *backend, size_t bytes) {
    const CudaState *s = cuda_state(backend);
    void *memory = regions_allocate(s->memory->regions, bytes);
    if (!memory) complain(s, bytes);
    return memory;
}

static bool extend(void *backend, void *memory, size_t bytes, size_t more) {
    return regions_extend(cuda_state(backend)->memory->regions, memory, bytes, more);
}

/* Work under way may still use it, and so may lists that are not started yet; and graphs name its addresses, at which
 * other memory may lie the next time: none is kept. (Lists stay known, and get their graphs again when they come.) */
static void release(void *backend, void *memory, size_t bytes) {
    CudaState *s = cuda_state(backend);
    (void)bytes;
    if (!memory) return;
    cuda_list_flush(s);
    cuda_list_synchronize(s);
    cuda_list_drop_graphs(s);
    regions_release(s->memory->regions, memory);
}

void cuda_block_reach(CudaState *s, CudaBlock *b, size_t bytes) {
    Regions *regions = s->memory->regions;
    if (bytes <= b->size) return;
    if (!b->memory && bytes < FIRST_BLOCK) bytes = FIRST_BLOCK; // smaller ones may not grow
    if (!b->memory)
        b->memory = regions_allocate(regions, bytes);
    else if (!regions_extend(regions, b->memory, b->size, bytes - b->size))
        b->memory = NULL;
    if (!b->memory) {
        complain(s, bytes - b->size);
        cuda_fail(s, "work space", "there is no memory left for it");
    }
    b->size = bytes;
}

void *cuda_scratch(CudaState *s, size_t bytes) {
    int lane = cuda_list_lane(s);
    CudaBlock *scratch = &s->memory->scratch[lane];
    size_t *used = &s->memory->scratch_used[lane], first = *used;
    *used += (bytes + SCRATCH_ALIGNMENT - 1) / SCRATCH_ALIGNMENT * SCRATCH_ALIGNMENT;
    cuda_block_reach(s, scratch, *used);
    return scratch->memory + first;
}

void cuda_memory_reach_lane(CudaState *s, int lane) { cuda_block_reach(s, &s->memory->scratch[lane], FIRST_SCRATCH); }

static void *queue_scratch(void *owner, size_t bytes) { return cuda_scratch(owner, bytes); }
static void queue_start(void *owner, CudaStart *start, const void *arguments, size_t bytes) {
    cuda_list_call(owner, start, arguments, bytes);
}
static const void *queue_message(void *owner, const void *host, size_t bytes) {
    enum { MESSAGE_ALIGNMENT = 16 };
    if (cuda_list_writing(owner)) return cuda_slab_put(owner, host, bytes, MESSAGE_ALIGNMENT);
    void *device = cuda_scratch(owner, bytes);
    cuda_upload(owner, device, host, bytes);
    return device;
}
CudaQueue cuda_queue(CudaState *s) { return (CudaQueue){s->stream, queue_scratch, queue_start, queue_message, s}; }

size_t cuda_scratch_mark(const CudaState *s) { return s->memory->scratch_used[cuda_list_lane(s)]; }
void cuda_scratch_rewind(CudaState *s, size_t mark) { s->memory->scratch_used[cuda_list_lane(s)] = mark; }

static bool memory(Backend *b, size_t *free, size_t *total) {
    (void)b;
    return cudaMemGetInfo(free, total) == cudaSuccess;
}

static size_t memory_held(Backend *b) {
    const CudaState *s = cuda_state(b);
    return regions_held(s->memory->regions) + (s->products ? WORK_PRODUCTS : 0);
}

void cuda_memory_install(Backend *b) {
    b->allocate = allocate, b->extend = extend, b->release = release;
    b->memory = memory, b->memory_held = memory_held;
}
