/* The CUDA backend on a machine without a GPU: all of its own files, over the stand-in of CUDA's runtime and the shim,
 * with products of the CPU backend in place of cuBLASLt's. Stands in for cuda_backend_new, so that gpu_check and tests
 * of what lies above run anywhere; with the shim's way of looking at every access. */
#include "tests/simt/runtime_queue.h"
#include <cstdio>
#include <cstring>
extern "C" {
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/cuda_list.h"
}

struct CudaProducts {
    Backend *cpu;
};

extern "C" const CudaModule bifocal_cuda_module;

int cuda_count(Error *error) { return bifocal_cuda_module.count(error); }
Backend *cuda_backend_new(const CudaOptions *options, Log *log, Error *error) {
    return bifocal_cuda_module.open(options, log, error);
}

bool cuda_module_built(void) { return true; }
void cuda_describe(int device, char *name, size_t name_size, char *pci, size_t pci_size) {
    (void)device;
    if (name_size) snprintf(name, name_size, "the shim");
    if (pci_size) *pci = 0;
}

// ---- products ----

struct Product { // a Matmul without padding
    CudaProducts *products;
    int64_t m, n, k, batch;
    const void *a, *b, *bias;
    void *c;
    int64_t a_row, a_column, a_batch, b_row, b_column, b_batch, c_row, c_batch;
    int64_t in, out, add;
};

static void multiply(const Product &p) {
    Matmul m = {};
    m.m = p.m, m.n = p.n, m.k = p.k, m.batch = p.batch;
    m.a = p.a, m.a_row = p.a_row, m.a_column = p.a_column, m.a_batch = p.a_batch;
    m.b = p.b, m.b_row = p.b_row, m.b_column = p.b_column, m.b_batch = p.b_batch;
    m.c = p.c, m.c_row = p.c_row, m.c_batch = p.c_batch;
    m.bias = static_cast<const float *>(p.bias);
    m.in = static_cast<Dtype>(p.in), m.out = static_cast<Dtype>(p.out), m.add = p.add;
    if (m.k) {
        p.products->cpu->matmul(p.products->cpu, &m);
        return;
    }
    for (int64_t i = 0; i < m.m && !m.add; i++)
        memset(static_cast<char *>(m.c) + static_cast<size_t>(i * m.c_row) * dtype_size(m.out), 0,
               static_cast<size_t>(m.n) * dtype_size(m.out));
}

static void start_product(const void *arguments, CudaStream stream) {
    Product p = *static_cast<const Product *>(arguments);
    queue_put(stream, [p] { multiply(p); });
}

static void matmul(Backend *b, const Matmul *m) {
    CudaState *s = cuda_state(b);
    check(m->epilogue == EPILOGUE_NONE && !m->sums); // matmul_wins is not there
    Product p = {s->products, m->m,     m->n,       m->k,        m->batch,   m->a,     m->b,
                 m->bias,     m->c,     m->a_row,   m->a_column, m->a_batch, m->b_row, m->b_column,
                 m->b_batch,  m->c_row, m->c_batch, m->in,       m->out,     m->add};
    cuda_list_call(s, start_product, &p, sizeof p);
    cuda_after(s, "matmul");
}

bool cuda_products_open(CudaState *s, Error *error) {
    (void)error;
    s->products = new CudaProducts{cpu_backend_new(1, nullptr, s->log)};
    return true;
}

void cuda_products_close(CudaState *s) {
    if (!s->products) return;
    backend_free(s->products->cpu);
    delete s->products;
    s->products = nullptr;
}

void cuda_products_install(Backend *b) { b->matmul = matmul; }
