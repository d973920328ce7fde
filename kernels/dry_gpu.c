/* See dry_gpu.h. Addresses come from where no memory can be: whoever touched them would fault. */
#include "kernels/dry_gpu.h"
#include "base/error.h"
#include "kernels/cuda/host/regions.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/dry.h"
#include <stdlib.h>

static const uintptr_t FIRST_ADDRESS = (uintptr_t)1 << 48; // beyond what a process can have
static const size_t MOST = (size_t)1 << 42;                // bytes: how far a region may grow

typedef struct Block { // of the backend's own, that grows where it stands
    void *memory;
    size_t size;
} Block;

typedef struct DryGpu {
    Backend backend; // first: a Backend of this kind is one of these
    Backend plain;   // whose kernels charge the clock
    Regions *regions;
    Block scratch[BACKEND_LANES]; // of each lane that was used
    Block place, arrival;         // of what the host sends along with a sequence (cuda_slab.c)
    bool in_sequence;
    size_t sent;                // bytes, along with the sequence up to now
    size_t limit, backed, host; // bytes
    uintptr_t next;             // address
    bool beyond, fused;
} DryGpu;

static DryGpu *gpu_of(const void *backend) { return (DryGpu *)backend; }

// ---- a device that counts ----

static bool reserve(void *context, size_t bytes, uintptr_t *address) {
    DryGpu *g = context;
    *address = g->next;
    g->next += bytes;
    return true;
}

static void unreserve(void *context, uintptr_t address, size_t bytes) { (void)context, (void)address, (void)bytes; }

static bool back(void *context, uintptr_t address, size_t bytes, uint64_t *piece) {
    DryGpu *g = context;
    (void)address;
    if (g->limit && !g->beyond && bytes > g->limit - g->backed) return false;
    g->backed += bytes;
    *piece = 0;
    return true;
}

static void unback(void *context, uintptr_t address, size_t bytes, uint64_t piece) {
    (void)address, (void)piece;
    gpu_of(context)->backed -= bytes;
}

// ---- memory ----

// A pool that gets no block has failed to grow by as much before: there is no room in any other way.
static void *allocate(void *backend, size_t bytes) {
    DryGpu *g = gpu_of(backend);
    void *memory = regions_allocate(g->regions, bytes);
    if (memory) return memory;
    g->beyond = true;
    return regions_allocate(g->regions, bytes);
}

static bool extend(void *backend, void *memory, size_t bytes, size_t more) {
    return regions_extend(gpu_of(backend)->regions, memory, bytes, more);
}

static void release(void *backend, void *memory, size_t bytes) {
    (void)bytes;
    regions_release(gpu_of(backend)->regions, memory);
}

static void *allocate_host(Backend *b, size_t bytes) {
    DryGpu *g = gpu_of(b);
    void *memory = (void *)g->next; // NOLINT(performance-no-int-to-ptr): nobody looks there
    g->next += (bytes + WORK_GRANULARITY) / WORK_GRANULARITY * WORK_GRANULARITY;
    g->host += bytes;
    return memory;
}

static void release_host(Backend *b, void *memory, size_t bytes) {
    (void)memory;
    gpu_of(b)->host -= bytes;
}

// After cuda_block_reach.
static void reach(DryGpu *g, Block *b, size_t bytes) {
    if (bytes <= b->size) return;
    if (!b->memory) {
        b->size = bytes > WORK_BLOCK_FIRST ? bytes : WORK_BLOCK_FIRST;
        b->memory = allocate(g, b->size);
        return;
    }
    if (!regions_extend(g->regions, b->memory, b->size, bytes - b->size)) {
        g->beyond = true;
        check(regions_extend(g->regions, b->memory, b->size, bytes - b->size));
    }
    b->size = bytes;
}

// What a call takes of the work space while it runs, after cuda_scratch.
static void take_scratch(Backend *b, size_t bytes) {
    size_t unit = WORK_SCRATCH_ALIGNMENT;
    reach(gpu_of(b), &gpu_of(b)->scratch[b->here->lane], (bytes + unit - 1) / unit * unit);
}

// ---- what the host sends along with a sequence ----

static void upload(Backend *b, void *device, const void *host, size_t bytes) {
    DryGpu *g = gpu_of(b);
    if (g->in_sequence && bytes) {
        g->sent = (g->sent + WORK_SLAB_ALIGNMENT - 1) / WORK_SLAB_ALIGNMENT * WORK_SLAB_ALIGNMENT + bytes;
        reach(g, &g->place, g->sent);
    }
    g->plain.upload(b, device, host, bytes);
}

static void send_along(DryGpu *g) {
    reach(g, &g->arrival, g->sent);
    g->sent = 0;
}

static void download(Backend *b, void *host, const void *device, size_t bytes) {
    send_along(gpu_of(b));
    gpu_of(b)->plain.download(b, host, device, bytes);
}

static void sequence_begin(Backend *b, const char *name) {
    (void)name;
    gpu_of(b)->in_sequence = true;
}

static void sequence_end(Backend *b) {
    send_along(gpu_of(b));
    gpu_of(b)->in_sequence = false;
}

// A lane has work space once it was used.
static void set_lane(Backend *b, int lane) {
    DryGpu *g = gpu_of(b);
    if (!g->in_sequence) return;
    g->plain.lane(b, lane);
    reach(g, &g->scratch[lane], WORK_SCRATCH_FIRST);
}

// ---- kernels ----

// Of kernels that are more than one: passes over rows with sums of chunks behind them, sorts of rows by eight bits a
// time.
static const struct {
    const char *kernel;
    int count;
} launches[] = {
    {"sum_columns", 2},
    {"layernorm_backward_weight", 2},
    {"rmsnorm_backward_weight", 2},
    {"norm_backward", 2},
    {"gelu_backward_sums", 2},
    {"fold_add", 2},
    {"sum_into", 2},
    {"sum_squares", 2},
    {"clip_sums", 2},
    {"attention_backward", 3},
    {"embedding_backward", 9},
    {"scatter_add_rows", 8},
};

// After cuda_fp8.c: both matrices are rounded first, and a bias with them.
static void matmul_fp8(Backend *b, const Matmul *m, Fp8Side left, Fp8Side right) {
    double elements = (double)(m->m + m->n) * (double)m->k;
    take_scratch(b, work_fp8(m->m, m->k) + work_fp8(m->n, m->k) + (m->bias ? work_fp8(m->n, sizeof(uint16_t)) : 0));
    dry_charge(b, "convert", elements * (double)(dtype_size(BF16) + dtype_size(E4M3)));
    dry_charge(b, "convert", 0); // the second of the two
    Matmul rounded = *m;
    rounded.in = E4M3;
    gpu_of(b)->plain.matmul_fp8(b, &rounded, left, right);
}

// What the epilogues of products take in, by the rules of cuda_products.c.
static bool matmul_wins(Backend *b, const Matmul *m) { return gpu_of(b)->fused && m->in == BF16; }

// By chunks of rows, as cuda_cross_entropy.c does: products, and a pass over the logits that reads each `looks` times
// from memory or writes it.
typedef struct Projection {
    Backend *backend;
    int64_t n, width, words;
    Dtype t;
    LogitsChunk logits;
} Projection;

static Projection projection(Backend *b, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    Projection p = {b, n, width, v.held, t, work_logits(n, v.held, t)};
    if (v.held > 0 && v.held + v.spare >= p.logits.stride) p.words = p.logits.stride;
    take_scratch(b, p.logits.bytes);
    return p;
}

static void product(const Projection *p, int64_t m, int64_t n, int64_t k, Dtype out, bool add) {
    const Backend *plain = &gpu_of(p->backend)->plain;
    plain->matmul(p->backend, &(Matmul){.m = m, .n = n, .k = k, .batch = 1, .in = p->t, .out = out, .add = add});
}

static void pass_chunks(const Projection *p, const char *kernel, int looks, bool dx, bool add_x, bool dw, bool add_w) {
    for (int64_t row = 0; row < p->n; row += p->logits.rows) {
        int64_t rows = p->n - row < p->logits.rows ? p->n - row : p->logits.rows;
        product(p, rows, p->words, p->width, p->t, false);
        dry_charge(p->backend, kernel, looks * (double)(rows * p->words) * (double)dtype_size(p->t));
        if (dx) product(p, rows, p->width, p->words, p->t, add_x);
        if (dw) product(p, p->words, p->width, rows, F32, add_w || row > 0);
    }
}

static void cross_entropy_forward(Backend *b, float *lse, float *picked, const void *x, const void *w,
                                  const int32_t *targets, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    (void)lse, (void)picked, (void)x, (void)w, (void)targets;
    if (!n) return;
    Projection p = projection(b, n, width, v, t);
    pass_chunks(&p, "cross_entropy_forward", 1, false, false, false, false);
}

static void cross_entropy_backward(Backend *b, void *dx, bool add_x, float *dw, bool add_w, const float *d_loss,
                                   const float *lse, const void *x, const void *w, const int32_t *targets,
                                   const float *weight, int64_t n, int64_t width, Vocabulary v, Dtype t) {
    (void)d_loss, (void)lse, (void)x, (void)w, (void)targets, (void)weight;
    if (!n) return;
    Projection p = projection(b, n, width, v, t);
    pass_chunks(&p, "cross_entropy_backward", 2, dx != NULL, add_x, dw != NULL, add_w);
}

static void cross_entropy_both(Backend *b, float *lse, float *picked, void *dx, float *dw, const void *x, const void *w,
                               const int32_t *targets, const float *weight, int64_t n, int64_t width, Vocabulary v,
                               Dtype t) {
    (void)lse, (void)picked, (void)x, (void)w, (void)targets, (void)weight;
    if (!n) return;
    Projection p = projection(b, n, width, v, t);
    pass_chunks(&p, "cross_entropy_backward", 2, dx != NULL, false, dw != NULL, false);
}

static void attention_backward(Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                               const float *lse, const void *q, const void *k, const void *v, const AttentionShape *s,
                               Dtype t, bool add) {
    bool cudnn = t == BF16 && !s->range;
    take_scratch(b, work_attention_backward(s->batch, s->queries, s->keys, s->heads, s->kv_heads, s->head_size, cudnn));
    gpu_of(b)->plain.attention_backward(b, dq, dk, dv, d_o, o, lse, q, k, v, s, t, add);
}

static void embedding_backward(Backend *b, float *dtable, const void *dy, const int32_t *ids, int64_t n, int64_t width,
                               int64_t vocab, Dtype t, bool add) {
    if (n && width) take_scratch(b, work_scatter(n, width));
    gpu_of(b)->plain.embedding_backward(b, dtable, dy, ids, n, width, vocab, t, add);
}

static void scatter_add_rows(Backend *b, void *y, Dtype to, const void *x, Dtype from, const int32_t *rows, int64_t m,
                             int64_t width, int64_t count) {
    if (m && width) take_scratch(b, work_scatter(m, width));
    gpu_of(b)->plain.scatter_add_rows(b, y, to, x, from, rows, m, width, count);
}

// ---- life ----

static void destroy(Backend *b) {
    DryGpu *g = gpu_of(b);
    void (*end)(Backend *) = g->plain.destroy;
    regions_free(g->regions);
    end(b); // frees the clock, and the backend with all that is around it
}

Backend *dry_gpu_new(size_t limit) {
    Backend *plain = dry_backend_new();
    dry_open_lanes(plain);
    DryGpu *g = calloc(1, sizeof *g);
    check(g);
    *g = (DryGpu){.backend = *plain, .plain = *plain, .limit = limit, .next = FIRST_ADDRESS};
    free(plain); // what it held is in the new one
    RegionDriver driver = {g, WORK_GRANULARITY, reserve, unreserve, back, unback};
    g->regions = regions_new(&driver, MOST);
    Backend *b = &g->backend;
    b->words_unit = WORK_LOGITS_PADDING;
    b->allocate_host = allocate_host, b->release_host = release_host;
    b->destroy = destroy, b->allocate = allocate, b->extend = extend, b->release = release;
    b->cross_entropy_forward = cross_entropy_forward, b->cross_entropy_backward = cross_entropy_backward;
    b->cross_entropy_both = cross_entropy_both;
    b->attention_backward = attention_backward;
    b->matmul_wins = matmul_wins, b->matmul_fp8 = matmul_fp8;
    dry_fuse(b);
    b->embedding_backward = embedding_backward, b->scatter_add_rows = scatter_add_rows;
    b->upload = upload, b->download = download;
    b->sequence_begin = sequence_begin, b->sequence_end = sequence_end;
    for (size_t i = 0; i < sizeof launches / sizeof *launches; i++)
        dry_set_launches(b, launches[i].kernel, launches[i].count);
    b->lane = set_lane;
    reach(g, &g->scratch[0], WORK_SCRATCH_FIRST);
    return b;
}

void dry_gpu_fuse(Backend *b) { gpu_of(b)->fused = true; }

static size_t backed(const Block *b) { return (b->size + WORK_GRANULARITY - 1) / WORK_GRANULARITY * WORK_GRANULARITY; }

DryGpuMemory dry_gpu_memory(const Backend *b) {
    const DryGpu *g = gpu_of(b);
    DryGpuMemory m = {.regions = regions_held(g->regions),
                      .sent = backed(&g->place) + backed(&g->arrival),
                      .host = g->host,
                      .beyond = g->beyond};
    for (int i = 0; i < BACKEND_LANES; i++) {
        m.scratch += backed(&g->scratch[i]);
        if (g->scratch[i].memory) m.products += WORK_PRODUCTS;
    }
    return m;
}
