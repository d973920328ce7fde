/* What the host sends along with a list of work: messages and uploads. They are gathered, one behind the other, in
 * pinned memory; when the list starts, a stream of its own copies them to the device, into `arrival`, and in front of
 * the list a copy within the device brings them from there to `place`, where its commands read. So their addresses are
 * a function of the list; the copy from the host runs beside the arithmetic of the list before, for `arrival` is free
 * again as soon as that one has begun; and what this costs is one copy at the device's own speed. The host writes one
 * slab while the other is copied. */
#include "base/error.h"
#include "kernels/cuda/cuda_state.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { SLABS = 2, FIRST_CHUNK = 1 << 20 }; // bytes

typedef struct Chunk { // pinned
    char *memory;
    size_t size;
} Chunk;

typedef struct Slab {
    Chunk *chunks; // filled in turn, each to its end
    int count;
    cudaEvent_t sent; // the device has all of it
} Slab;

struct CudaSlabs {
    Slab slabs[SLABS];
    int now;                  // the slab of the list being written
    bool begun;               // something is in it
    int chunk;                // where the next byte goes: chunk,
    size_t in_chunk, used;    // bytes of it, bytes of all
    CudaBlock arrival, place; // device
    cudaEvent_t taken;        // `arrival` was copied to `place`
    cudaStream_t stream;
};

bool cuda_slabs_open(CudaState *s, Error *error) {
    CudaSlabs *a = calloc(1, sizeof *a);
    check(a);
    s->slabs = a;
    cudaError_t status = cudaStreamCreateWithFlags(&a->stream, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaEventCreateWithFlags(&a->taken, cudaEventDisableTiming);
    for (int i = 0; i < SLABS && status == cudaSuccess; i++)
        status = cudaEventCreateWithFlags(&a->slabs[i].sent, cudaEventDisableTiming);
    return status == cudaSuccess ||
           error_set(error, ERROR_FAILED, "no stream for copies: %s", cudaGetErrorString(status));
}

void cuda_slabs_close(CudaState *s) {
    CudaSlabs *a = s->slabs;
    if (!a) return;
    if (a->stream) (void)cudaStreamSynchronize(a->stream);
    for (int i = 0; i < SLABS; i++) {
        for (int k = 0; k < a->slabs[i].count; k++) cuda_pinned_free(a->slabs[i].chunks[k].memory);
        free(a->slabs[i].chunks);
        if (a->slabs[i].sent) (void)cudaEventDestroy(a->slabs[i].sent);
    }
    if (a->taken) (void)cudaEventDestroy(a->taken);
    if (a->stream) (void)cudaStreamDestroy(a->stream);
    free(a);
    s->slabs = NULL;
}

// ---- writing ----

static void add_chunk(CudaState *s, Slab *slab, size_t wanted) {
    size_t size = FIRST_CHUNK;
    for (int i = 0; i < slab->count; i++) size += slab->chunks[i].size; // twice what there was
    while (size < wanted) size *= 2;
    slab->chunks = realloc(slab->chunks, (size_t)(slab->count + 1) * sizeof *slab->chunks);
    check(slab->chunks);
    slab->chunks[slab->count++] = (Chunk){cuda_pinned(s, size), size};
}

// The next bytes, or as many as lie together. `wanted`: how many will follow.
static char *next_bytes(CudaState *s, size_t wanted, size_t *got) {
    CudaSlabs *a = s->slabs;
    Slab *slab = &a->slabs[a->now];
    if (a->chunk < slab->count && a->in_chunk == slab->chunks[a->chunk].size) a->chunk++, a->in_chunk = 0;
    if (a->chunk == slab->count) add_chunk(s, slab, wanted);
    const Chunk *c = &slab->chunks[a->chunk];
    char *at = c->memory + a->in_chunk;
    *got = c->size - a->in_chunk < wanted ? c->size - a->in_chunk : wanted;
    a->in_chunk += *got, a->used += *got;
    return at;
}

const void *cuda_slab_put(CudaState *s, const void *host, size_t bytes, size_t alignment) {
    CudaSlabs *a = s->slabs;
    if (!a->begun) cuda_must(s, cudaEventSynchronize(a->slabs[a->now].sent), "an upload");
    a->begun = true;
    size_t got;
    for (size_t gap = (alignment - a->used % alignment) % alignment; gap; gap -= got) {
        char *at = next_bytes(s, gap, &got);
        memset(at, 0, got);
    }
    size_t first = a->used;
    cuda_block_reach(s, &a->place, first + bytes);
    for (size_t done = 0; done < bytes; done += got) {
        char *at = next_bytes(s, bytes - done, &got);
        memcpy(at, (const char *)host + done, got);
    }
    return a->place.memory + first;
}

// ---- sending ----

static void copy_chunks(CudaState *s, const Slab *slab) {
    CudaSlabs *a = s->slabs;
    size_t done = 0;
    for (int i = 0; done < a->used; i++) {
        size_t left = a->used - done, part = slab->chunks[i].size < left ? slab->chunks[i].size : left;
        cuda_must(
            s,
            cudaMemcpyAsync(a->arrival.memory + done, slab->chunks[i].memory, part, cudaMemcpyHostToDevice, a->stream),
            "an upload");
        done += part;
    }
}

void cuda_slab_send(CudaState *s) {
    CudaSlabs *a = s->slabs;
    Slab *slab = &a->slabs[a->now];
    if (a->used) {
        cuda_block_reach(s, &a->arrival, a->used);
        cuda_must(s, cudaStreamWaitEvent(a->stream, a->taken, 0), "an upload");
        copy_chunks(s, slab);
        cuda_must(s, cudaEventRecord(slab->sent, a->stream), "an upload");
        cuda_must(s, cudaStreamWaitEvent(s->stream, slab->sent, 0), "an upload");
        cuda_must(s, cudaMemcpyAsync(a->place.memory, a->arrival.memory, a->used, cudaMemcpyDeviceToDevice, s->stream),
                  "an upload");
        cuda_must(s, cudaEventRecord(a->taken, s->stream), "an upload");
    }
    a->now = (a->now + 1) % SLABS;
    a->begun = false;
    a->chunk = 0, a->in_chunk = 0, a->used = 0;
}
