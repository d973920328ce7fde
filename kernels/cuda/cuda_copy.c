/* Copies, all in the order of the stream. What comes from the host outside of sequences goes through a ring of pinned
 * pieces, so that the caller may reuse its memory at once and nothing waits for the device unless the ring is full;
 * within a sequence it is sent along with the list (cuda_slab.c). Either end may be memory of allocate_host. */
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/host/work_space.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { PIECES = 8, PIECE = 4 << 20 }; // bytes

struct CudaStaging {
    char *memory;              // (PIECES, PIECE), pinned
    cudaEvent_t taken[PIECES]; // the device has read the piece
    int next;
    size_t used; // bytes of piece `next`
};

bool cuda_staging_open(CudaState *s, Error *error) {
    CudaStaging *ring = calloc(1, sizeof *ring);
    check(ring);
    s->staging = ring;
    cudaError_t status = cudaHostAlloc((void **)&ring->memory, (size_t)PIECES * PIECE, cudaHostAllocDefault);
    for (int i = 0; i < PIECES && status == cudaSuccess; i++)
        status = cudaEventCreateWithFlags(&ring->taken[i], cudaEventDisableTiming);
    return status == cudaSuccess ||
           error_set(error, ERROR_FAILED, "no pinned memory for copies: %s", cudaGetErrorString(status));
}

void cuda_staging_close(CudaState *s) {
    if (!s->staging) return;
    for (int i = 0; i < PIECES; i++)
        if (s->staging->taken[i]) (void)cudaEventDestroy(s->staging->taken[i]);
    (void)cudaFreeHost(s->staging->memory);
    free(s->staging);
    s->staging = NULL;
}

// The current piece is full: on to the next, once the device has read what it held.
static void turn(CudaState *s, CudaStaging *ring) {
    cuda_must(s, cudaEventRecord(ring->taken[ring->next], s->stream), "an upload");
    ring->next = (ring->next + 1) % PIECES;
    ring->used = 0;
    cuda_must(s, cudaEventSynchronize(ring->taken[ring->next]), "an upload");
}

void cuda_upload(CudaState *s, void *device, const void *host, size_t bytes) {
    CudaStaging *ring = s->staging;
    for (size_t done = 0; done < bytes;) {
        if (ring->used == PIECE) turn(s, ring);
        size_t part = PIECE - ring->used < bytes - done ? PIECE - ring->used : bytes - done;
        char *staged = ring->memory + (size_t)ring->next * PIECE + ring->used;
        memcpy(staged, (const char *)host + done, part);
        cuda_must(s, cudaMemcpyAsync((char *)device + done, staged, part, cudaMemcpyDefault, s->stream), "an upload");
        ring->used += part;
        done += part;
    }
    cuda_after(s, "upload");
}

void *cuda_pinned(CudaState *s, size_t bytes) {
    void *memory = NULL;
    cuda_must(s, cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned memory for copies");
    return memory;
}

void *cuda_pinned_for_kernels(CudaState *s, size_t bytes) {
    void *memory = NULL;
    cuda_must(s, cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "pinned memory for kernels");
    return memory;
}

void cuda_pinned_free(void *memory) {
    if (memory) (void)cudaFreeHost(memory);
}

static void upload(Backend *b, void *device, const void *host, size_t bytes) {
    enum { ALIGNMENT = WORK_SLAB_ALIGNMENT };
    CudaState *s = cuda_state(b);
    if (!bytes) return;
    if (cuda_list_writing(s)) {
        cuda_put_copy(s, device, cuda_slab_put(s, host, bytes, ALIGNMENT), bytes);
        cuda_after(s, "upload");
    } else {
        cuda_upload(s, device, host, bytes);
    }
}

// The ring's pieces are free behind a wait for the stream, so a download may use them all.
static void download(Backend *b, void *host, const void *device, size_t bytes) {
    CudaState *s = cuda_state(b);
    CudaStaging *ring = s->staging;
    cuda_list_flush(s);
    cuda_must(s, cudaStreamSynchronize(s->stream), "work before a download");
    ring->used = 0;
    for (size_t done = 0; done < bytes;) {
        size_t most = (size_t)PIECES * PIECE, part = most < bytes - done ? most : bytes - done;
        cuda_must(s, cudaMemcpyAsync(ring->memory, (const char *)device + done, part, cudaMemcpyDefault, s->stream),
                  "a download");
        cuda_must(s, cudaStreamSynchronize(s->stream), "a download");
        memcpy((char *)host + done, ring->memory, part);
        done += part;
    }
}

// ---- within the device ----

typedef struct Copy {
    CudaState *state;
    void *to;
    const void *from; // NULL: zeros
    size_t bytes;
} Copy;

static void start_copy(const void *arguments, CudaStream stream) {
    const Copy *c = arguments;
    if (c->from)
        cuda_must(c->state, cudaMemcpyAsync(c->to, c->from, c->bytes, cudaMemcpyDefault, stream), "a copy");
    else
        cuda_must(c->state, cudaMemsetAsync(c->to, 0, c->bytes, stream), "zeroing");
}

void cuda_put_copy(CudaState *s, void *to, const void *from, size_t bytes) {
    if (bytes) cuda_list_call(s, start_copy, &(Copy){s, to, from, bytes}, sizeof(Copy));
}

static void copy(Backend *b, void *to, const void *from, size_t bytes) {
    cuda_put_copy(cuda_state(b), to, from, bytes);
    cuda_after(cuda_state(b), "copy");
}

static void zero(Backend *b, void *memory, size_t bytes) {
    cuda_put_copy(cuda_state(b), memory, NULL, bytes);
    cuda_after(cuda_state(b), "zero");
}

static void wait_for_all(Backend *b) {
    CudaState *s = cuda_state(b);
    cuda_list_flush(s);
    cuda_list_synchronize(s);
}

void cuda_copy_install(Backend *b) {
    b->upload = upload, b->download = download, b->copy = copy, b->zero = zero, b->wait = wait_for_all;
}
