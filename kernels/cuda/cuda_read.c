/* Reads that the host does not wait for. Within a list a read is a copy to `place`, of fixed addresses, so that the
 * same list stays the same; behind the list a copy within the device takes all of them to memory of this batch, and a
 * stream of its own on to pinned memory, while the next list runs. A batch is used again when the host has what it
 * wanted. */
#include "base/error.h"
#include "kernels/cuda/cuda_list.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 256 };

typedef struct Batch {      // the reads of one list, or one read outside of lists
    char *host;             // pinned
    size_t host_size, used; // bytes
    CudaBlock device;
    cudaEvent_t done; // they are in host memory
    int pending;      // reads that nobody has finished yet
} Batch;

struct BackendRead {
    Batch *batch;
    size_t first, bytes;
};

struct CudaReads {
    Batch **batches;
    int count;
    Batch *writing; // that of the list being written; NULL: it has none
    CudaBlock place;
    cudaStream_t stream;
    cudaEvent_t behind; // the lists up to now
};

bool cuda_reads_open(CudaState *s, Error *error) {
    CudaReads *r = calloc(1, sizeof *r);
    check(r);
    s->reads = r;
    cudaError_t status = cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaEventCreateWithFlags(&r->behind, cudaEventDisableTiming);
    return status == cudaSuccess ||
           error_set(error, ERROR_FAILED, "no stream for reads: %s", cudaGetErrorString(status));
}

void cuda_reads_close(CudaState *s) {
    CudaReads *r = s->reads;
    if (!r) return;
    if (r->stream) (void)cudaStreamSynchronize(r->stream);
    for (int i = 0; i < r->count; i++) {
        (void)cudaEventDestroy(r->batches[i]->done);
        cuda_pinned_free(r->batches[i]->host);
        free(r->batches[i]);
    }
    if (r->behind) (void)cudaEventDestroy(r->behind);
    if (r->stream) (void)cudaStreamDestroy(r->stream);
    free(r->batches);
    free(r);
    s->reads = NULL;
}

static Batch *free_batch(CudaState *s) {
    CudaReads *r = s->reads;
    for (int i = 0; i < r->count; i++)
        if (!r->batches[i]->pending && r->batches[i] != r->writing) return r->batches[i];
    Batch *b = calloc(1, sizeof *b);
    r->batches = realloc(r->batches, (size_t)(r->count + 1) * sizeof(Batch *));
    check(b && r->batches);
    cuda_must(s, cudaEventCreateWithFlags(&b->done, cudaEventDisableTiming), "an event");
    return r->batches[r->count++] = b;
}

// Nobody wants what it held, but a copy of it may still be under way.
static void host_room(CudaState *s, Batch *b) {
    if (b->used <= b->host_size) return;
    cuda_must(s, cudaEventSynchronize(b->done), "a read");
    cuda_pinned_free(b->host);
    b->host_size = 2 * b->used;
    b->host = cuda_pinned(s, b->host_size);
}

static BackendRead *add_read(Batch *b, size_t bytes) {
    BackendRead *read = malloc(sizeof *read);
    check(read);
    *read = (BackendRead){b, (b->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, bytes};
    b->used = read->first + bytes;
    b->pending++;
    return read;
}

static BackendRead *read_start(Backend *backend, const void *device, size_t bytes) {
    CudaState *s = cuda_state(backend);
    CudaReads *r = s->reads;
    if (cuda_list_writing(s)) {
        if (!r->writing) r->writing = free_batch(s), r->writing->used = 0;
        BackendRead *read = add_read(r->writing, bytes);
        cuda_block_reach(s, &r->place, r->writing->used);
        cuda_put_copy(s, r->place.memory + read->first, device, bytes);
        cuda_list_note(s, "a read");
        return read;
    }
    Batch *b = free_batch(s);
    b->used = 0;
    BackendRead *read = add_read(b, bytes);
    host_room(s, b);
    cuda_must(s, cudaStreamWaitEvent(s->stream, b->done, 0), "a read"); // which may stem from the other stream
    if (bytes) cuda_must(s, cudaMemcpyAsync(b->host, device, bytes, cudaMemcpyDeviceToHost, s->stream), "a read");
    cuda_must(s, cudaEventRecord(b->done, s->stream), "a read");
    return read;
}

void cuda_reads_send(CudaState *s) {
    CudaReads *r = s->reads;
    Batch *b = r->writing;
    if (!b) return;
    r->writing = NULL;
    host_room(s, b); // an older copy out of it may still be under way: nobody wants that one
    cuda_block_reach(s, &b->device, b->used);
    cuda_must(s, cudaMemcpyAsync(b->device.memory, r->place.memory, b->used, cudaMemcpyDeviceToDevice, s->stream),
              "a read");
    cuda_must(s, cudaEventRecord(r->behind, s->stream), "a read");
    cuda_must(s, cudaStreamWaitEvent(r->stream, r->behind, 0), "a read");
    cuda_must(s, cudaMemcpyAsync(b->host, b->device.memory, b->used, cudaMemcpyDeviceToHost, r->stream), "a read");
    cuda_must(s, cudaEventRecord(b->done, r->stream), "a read");
}

static void read_finish(Backend *backend, BackendRead *read, void *host) {
    CudaState *s = cuda_state(backend);
    if (!read) return;
    Batch *b = read->batch;
    if (host) {
        if (b == s->reads->writing) cuda_list_flush(s);
        cuda_must(s, cudaEventSynchronize(b->done), "work before a read");
        memcpy(host, b->host + read->first, read->bytes);
    }
    b->pending--;
    free(read);
}

void cuda_reads_install(Backend *b) { b->read_start = read_start, b->read_finish = read_finish; }
