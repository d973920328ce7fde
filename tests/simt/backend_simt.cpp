/* The CUDA backend on the shim: its own files for calls of kernels, cross-entropy and attention, over memory of the shim,
 * copies of the CPU, and products of the CPU backend in place of cuBLASLt's. Stands in for cuda_backend_new, so that
 * gpu_check runs on a machine without a GPU; with the shim's way of looking at every access. */
#include "tests/simt/shim/host.h"
#include <stdlib.h>
#include <string.h>
extern "C" {
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda_list.h"
}

static constexpr size_t SCRATCH = 64 << 20, ALIGNMENT = 256; // bytes

struct CudaMemory {
    char *scratch;
    size_t used;
};
struct CudaProducts {
    Backend *cpu;
};

int cuda_count(Error *error) {
    (void)error;
    return 1;
}

void cuda_after(CudaState *s, const char *what) { (void)s, (void)what; }
void cuda_list_call(CudaState *s, CudaStart *start, const void *arguments, size_t bytes) {
    (void)bytes;
    start(arguments, s->stream);
}

// ---- memory ----

static void *allocate(void *backend, size_t bytes) {
    (void)backend;
    return simt_allocate(bytes ? bytes : 1);
}

static void release(void *backend, void *memory, size_t bytes) {
    (void)backend, (void)bytes;
    simt_release(memory);
}

void *cuda_scratch(CudaState *s, size_t bytes) {
    CudaMemory *m = s->memory;
    void *memory = m->scratch + m->used;
    m->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    check(m->used <= SCRATCH);
    return memory;
}

size_t cuda_scratch_mark(const CudaState *s) { return s->memory->used; }
void cuda_scratch_rewind(CudaState *s, size_t mark) { s->memory->used = mark; }

static void *queue_scratch(void *owner, size_t bytes) { return cuda_scratch(static_cast<CudaState *>(owner), bytes); }
static const void *queue_message(void *owner, const void *host, size_t bytes) {
    return memcpy(queue_scratch(owner, bytes), host, bytes);
}
CudaQueue cuda_queue(CudaState *s) { return CudaQueue{nullptr, queue_scratch, nullptr, queue_message, s}; }

static void copy(Backend *b, void *to, const void *from, size_t bytes) {
    (void)b;
    if (bytes) memcpy(to, from, bytes);
}

static void zero(Backend *b, void *memory, size_t bytes) {
    (void)b;
    if (bytes) memset(memory, 0, bytes);
}

static void wait_for_all(Backend *b) { (void)b; }

// ---- life ----

static void matmul(Backend *b, const Matmul *p) {
    Backend *cpu = cuda_state(b)->products->cpu;
    if (p->k) {
        cpu->matmul(cpu, p);
        return;
    }
    for (int64_t i = 0; i < p->m && !p->add; i++)
        memset(static_cast<char *>(p->c) + static_cast<size_t>(i * p->c_row) * dtype_size(p->out), 0,
               static_cast<size_t>(p->n) * dtype_size(p->out));
}

static void destroy(Backend *b) {
    CudaState *s = cuda_state(b);
    simt_release(s->memory->scratch);
    backend_free(s->products->cpu);
    delete s->memory;
    delete s->products;
    delete s;
    delete b;
}

Backend *cuda_backend_new(const CudaOptions *options, Log *log, Error *error) {
    (void)options, (void)error;
    Backend *b = new Backend{};
    CudaState *s = new CudaState{};
    s->memory = new CudaMemory{static_cast<char *>(simt_allocate(SCRATCH)), 0};
    s->products = new CudaProducts{cpu_backend_new(1, nullptr, log)};
    b->name = "cuda", b->isa = "shim", b->state = s, b->destroy = destroy;
    b->allocate = allocate, b->release = release, b->copy = copy, b->upload = copy, b->download = copy;
    b->zero = zero, b->wait = wait_for_all, b->matmul = matmul;
    cuda_calls_install(b);
    cuda_cross_entropy_install(b);
    cuda_attention_install(b);
    return b;
}
