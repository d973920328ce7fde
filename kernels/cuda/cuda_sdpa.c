/* See cuda_sdpa.h. */
#include "kernels/cuda/cuda_sdpa.h"
#include "base/error.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_list.h"
#include "kernels/cuda/host/product_layout.h"
#include "kernels/cuda/host/product_memory.h"
#include "kernels/cuda/host/shape_cache.h"
#include "kernels/cuda/host/work_space.h"
#include "kernels/cuda/sdpa_graphs.h"
#include <cuda_runtime_api.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_HEAD_SIZE = 128, UNIT = 8, MOST_MEMORY = 16, MOST_PLANS = 3, MOST_SHAPES = 32, REPEATS = 5 };
static const double CLEARLY = 0.9; // of the time of what is taken otherwise: below it is no noise

typedef struct Choice { // for a shape
    CudnnGraph *graph;
    CudnnPlan *plan; // NULL: our own kernels
} Choice;

struct CudaSdpa {
    Cudnn *cudnn;
    ShapeCache *choices;   // SdpaKey -> Choice
    ProductMemory *memory; // choices of earlier runs; NULL: nothing is timed, the first plan that agrees is taken
    bool steady;
};

static void choice_drop(void *value) {
    Choice *c = value;
    cudnn_plan_free(c->plan);
    cudnn_graph_free(c->graph);
}

// As products are: a run that goes on has the kernels, and so the bits, that it had.
static ProductMemory *open_memory(const CudaState *s, const Cudnn *cudnn) {
    char path[PATH_MAX], name[256], whose[256];
    const char *wish = getenv("BIFOCAL_AUTOTUNE");
    if (wish && !strcmp(wish, "0")) return NULL;
    (void)snprintf(whose, sizeof whose, "%s, %s, %d multiprocessors, cuDNN %zu", s->gpu.name, s->architecture,
                   s->multiprocessors, cudnn_version(cudnn));
    (void)snprintf(name, sizeof name, "attention-%.80s-%d-%zu", s->gpu.name, s->multiprocessors, cudnn_version(cudnn));
    bool place = product_memory_path(path, sizeof path, name);
    return product_memory_open(place ? path : NULL, whose, s->log);
}

CudaSdpa *cuda_sdpa_new(CudaState *s, bool steady) {
    Cudnn *cudnn = cudnn_open(s->stream, s->log);
    if (!cudnn) return NULL;
    CudaSdpa *a = calloc(1, sizeof *a);
    check(a);
    *a = (CudaSdpa){cudnn, shape_cache_new(sizeof(SdpaKey), sizeof(Choice)), open_memory(s, cudnn), steady};
    return a;
}

void cuda_sdpa_free(CudaSdpa *a) {
    if (!a) return;
    shape_cache_free(a->choices, choice_drop);
    product_memory_close(a->memory);
    cudnn_close(a->cudnn);
    free(a);
}

// ---- a call ----

typedef struct Call { // forward: what is not of it is NULL
    CudaState *state;
    Backend *backend;
    const AttentionShape *shape;
    void *o, *dq, *dk, *dv; // outputs; o an input going back
    float *lse;
    const void *q, *k, *v, *d_o;
    bool backward;
} Call;

static SdpaKey key_of(const Call *c, bool steady) {
    const AttentionShape *s = c->shape;
    return (SdpaKey){.batch = s->batch,
                     .queries = s->queries,
                     .keys = s->keys,
                     .heads = s->heads,
                     .kv_heads = s->kv_heads,
                     .size = s->head_size,
                     .q_stride = s->q_stride,
                     .k_stride = s->k_stride,
                     .v_stride = s->v_stride,
                     .causal = s->causal,
                     .backward = c->backward,
                     .steady = c->backward && steady};
}

static bool aligned(const void *x, int64_t stride) { return pointer_alignment(x) >= 16 && stride % UNIT == 0; }

// Going back, cuDNN up to 9.15.0 reads beyond keys that do not fill its last tile, unless it is told their number.
static bool whole_tiles(const CudaSdpa *a, const Call *c) {
    enum { LAST_TO_NEED_THEM = 91500, TILE = 128 };
    return !c->backward || c->shape->keys % TILE == 0 || cudnn_version(a->cudnn) > LAST_TO_NEED_THEM;
}

static bool fits(const Call *c, Dtype t) {
    const AttentionShape *s = c->shape;
    bool gradients =
        !c->backward || (c->dq && c->dk && c->dv && aligned(c->dq, s->q_stride) && aligned(c->dk, s->k_stride) &&
                         aligned(c->dv, s->v_stride) && aligned(c->d_o, s->o_stride));
    return t == BF16 && !s->range && s->head_size % UNIT == 0 && s->head_size <= MOST_HEAD_SIZE && s->batch > 0 &&
           s->queries > 1 && s->keys > 0 && (!s->causal || s->queries == s->keys) &&
           s->o_stride == (int64_t)s->heads * s->head_size && aligned(c->q, s->q_stride) &&
           aligned(c->k, s->k_stride) && aligned(c->v, s->v_stride) && aligned(c->o, s->o_stride) && gradients;
}

// ---- running a plan ----

typedef struct Run { // as bytes in a list
    CudaState *state;
    const CudnnPlan *plan;
    void *workspace;
    int64_t count, name[MOST_MEMORY];
    void *at[MOST_MEMORY];
    float scale;
    int32_t causal, backward, unused;
} Run;

static void give(Run *r, int64_t name, const void *at) {
    check(r->count < MOST_MEMORY - 3); // values come behind
    r->name[r->count] = name;
    r->at[r->count++] = (void *)at;
}

static bool start_now(const Run *run, CudaStream stream) {
    Run r = *run;
    float hidden = -INFINITY, one = 1;
    r.name[r.count] = SDPA_SCALE, r.at[r.count++] = &r.scale;
    if (r.causal) r.name[r.count] = SDPA_HIDDEN, r.at[r.count++] = &hidden;
    if (r.backward) r.name[r.count] = SDPA_ONE, r.at[r.count++] = &one;
    return cudnn_plan_run(r.plan, stream, (int)r.count, r.name, r.at, r.workspace);
}

static void start(const void *arguments, CudaStream stream) {
    const Run *r = arguments;
    if (!start_now(r, stream)) cuda_must(r->state, cudaErrorUnknown, "attention by cuDNN");
}

static size_t rounded(size_t bytes) {
    return (bytes + WORK_SCRATCH_ALIGNMENT - 1) / WORK_SCRATCH_ALIGNMENT * WORK_SCRATCH_ALIGNMENT;
}

static size_t delta_bytes(const Call *c) {
    const AttentionShape *s = c->shape;
    return c->backward ? rounded((size_t)(s->batch * s->heads * s->queries) * sizeof(float)) : 0;
}
static size_t sum_bytes(const Call *c, bool steady) {
    return steady ? 0 : delta_bytes(c) * (size_t)c->shape->head_size;
}
static size_t work_bytes(const Call *c, bool steady, const CudnnPlan *p) {
    return rounded(cudnn_plan_workspace(p)) + delta_bytes(c) + sum_bytes(c, steady);
}

// work: work_bytes of device memory.
static Run run_of(const Call *c, bool steady, const CudnnPlan *p, char *work) {
    const AttentionShape *s = c->shape;
    Run r = {.state = c->state,
             .plan = p,
             .workspace = work + delta_bytes(c) + sum_bytes(c, steady),
             .scale = 1 / sqrtf((float)s->head_size),
             .causal = s->causal,
             .backward = c->backward};
    give(&r, SDPA_Q, c->q), give(&r, SDPA_K, c->k), give(&r, SDPA_V, c->v), give(&r, SDPA_O, c->o);
    give(&r, SDPA_STATS, c->lse);
    if (!c->backward) return r;
    give(&r, SDPA_D_O, c->d_o), give(&r, SDPA_DQ, c->dq), give(&r, SDPA_DK, c->dk), give(&r, SDPA_DV, c->dv);
    give(&r, SDPA_DELTA, work);
    if (!steady) give(&r, SDPA_DQ_SUM, work + delta_bytes(c));
    return r;
}

// ---- our own kernels beside it ----

static void run_own(const Call *c) {
    CudaQueue queue = cuda_queue(c->state);
    queue.start = NULL; // at once
    size_t mark = cuda_scratch_mark(c->state);
    if (c->backward)
        cuda_attention_backward(&queue, c->dq, c->dk, c->dv, c->d_o, c->o, c->lse, c->q, c->k, c->v, c->shape, BF16,
                                false);
    else
        cuda_attention_forward(&queue, c->o, c->lse, c->q, c->k, c->v, c->shape, BF16);
    cuda_scratch_rewind(c->state, mark);
}

// Rows of `width` numbers, `stride` apart, in bf16: within the roundings of that type, taken over all of them.
static bool alike(Backend *b, const void *got, const void *want, int64_t rows, int64_t width, int64_t stride) {
    size_t count = (size_t)((rows - 1) * stride + width), bytes = count * sizeof(uint16_t);
    uint16_t *host = malloc(2 * bytes);
    double square = 0, difference = 0;
    check(host);
    b->download(b, host, got, bytes);
    b->download(b, host + count, want, bytes);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = row * stride; i < row * stride + width; i++) {
            double x = (double)bf16_to_f32(host[i]), y = (double)bf16_to_f32(host[count + (size_t)i]);
            square += y * y, difference += (x - y) * (x - y);
        }
    }
    free(host);
    return difference <= 4e-4 * square + 1e-12; // 2 % of the root mean square
}

static bool outputs_agree(const Call *got, const Call *want) {
    const AttentionShape *s = got->shape;
    int64_t rows = s->batch * s->queries, keys = s->batch * s->keys, kv_width = (int64_t)s->kv_heads * s->head_size;
    Backend *b = got->backend;
    if (!got->backward) return alike(b, got->o, want->o, rows, s->o_stride, s->o_stride);
    return alike(b, got->dq, want->dq, rows, s->o_stride, s->q_stride) &&
           alike(b, got->dk, want->dk, keys, kv_width, s->k_stride) &&
           alike(b, got->dv, want->dv, keys, kv_width, s->v_stride);
}

// ---- choosing ----

typedef struct Trial {
    const Call *call; // whose outputs the plans write
    Call own;         // the same, with outputs of its own
    char *memory, *work;
    bool steady;
    cudaEvent_t begin, end;
} Trial;

static size_t rows_bytes(int64_t rows, int64_t stride) { return rounded((size_t)(rows * stride) * sizeof(uint16_t)); }

// In memory that is given back, so that choosing leaves no trace. False: there is not enough.
static bool trial_begin(Trial *t, CudnnPlan *const *plans, int count) {
    const AttentionShape *s = t->call->shape;
    size_t work = 0, q = rows_bytes(s->batch * s->queries, s->q_stride),
           o = rows_bytes(s->batch * s->queries, s->o_stride), k = rows_bytes(s->batch * s->keys, s->k_stride),
           v = rows_bytes(s->batch * s->keys, s->v_stride);
    size_t lse = rounded((size_t)(s->batch * s->heads * s->queries) * sizeof(float));
    for (int i = 0; i < count; i++)
        if (work_bytes(t->call, t->steady, plans[i]) > work) work = work_bytes(t->call, t->steady, plans[i]);
    bool ok = cudaMalloc((void **)&t->memory, (t->call->backward ? q + k + v : o + lse) + work) == cudaSuccess &&
              cudaEventCreate(&t->begin) == cudaSuccess && cudaEventCreate(&t->end) == cudaSuccess;
    (void)cudaGetLastError(); // no memory is no fault
    if (!ok) return false;
    t->own = *t->call;
    t->work = t->memory;
    if (t->call->backward)
        t->own.dq = t->work + work, t->own.dk = t->work + work + q, t->own.dv = t->work + work + q + k;
    else
        t->own.o = t->work + work, t->own.lse = (float *)(void *)(t->work + work + o);
    return true;
}

static void trial_end(Trial *t) {
    if (t->begin) (void)cudaEventDestroy(t->begin);
    if (t->end) (void)cudaEventDestroy(t->end);
    (void)cudaFree(t->memory);
}

static bool try_once(const Trial *t, const CudnnPlan *plan) {
    if (!plan) {
        run_own(&t->own);
        return true;
    }
    Run r = run_of(t->call, t->steady, plan, t->work);
    return start_now(&r, t->call->state->stream);
}

static double seconds_of(const Trial *t, const CudnnPlan *plan) {
    CudaState *s = t->call->state;
    float milliseconds = 0;
    bool ok = try_once(t, plan);
    cuda_must(s, cudaEventRecord(t->begin, s->stream), "timing attention");
    for (int i = 0; i < REPEATS && ok; i++) ok = try_once(t, plan);
    cuda_must(s, cudaEventRecord(t->end, s->stream), "timing attention");
    cuda_must(s, cudaEventSynchronize(t->end), "timing attention");
    cuda_must(s, cudaEventElapsedTime(&milliseconds, t->begin, t->end), "timing attention");
    return ok ? 1e-3 * (double)milliseconds / REPEATS : INFINITY;
}

static void say(const Call *c, int best, int believed, int count, double seconds, double own) {
    const AttentionShape *s = c->shape;
    log_info(
        c->state->log,
        "attention %s of %lld queries, %lld keys, heads of %d: %s; %d of cuDNN's %d plans agree with ours (best %.0f "
        "us, ours %.0f us; 0, inf: not timed)",
        c->backward ? "backward" : "forward", (long long)s->queries, (long long)s->keys, s->head_size,
        best < 0 ? "ours" : "cuDNN's", believed, count, seconds * 1e6, own * 1e6);
}

// The plan to take, -1: ours. A plan is believed once its results agree with ours.
static int choose(const CudaSdpa *a, const Call *c, CudnnPlan *const *plans, int count) {
    Trial t = {.call = c, .steady = a->steady};
    int best = -1, believed = 0;
    double least = INFINITY, own = INFINITY;
    cuda_list_flush(c->state);
    if (trial_begin(&t, plans, count)) {
        run_own(&t.own);
        own = a->memory ? seconds_of(&t, NULL) : INFINITY;
        for (int i = 0; i < count && (a->memory || best < 0); i++) {
            if (!try_once(&t, plans[i]) || !outputs_agree(c, &t.own)) continue;
            double seconds = a->memory ? seconds_of(&t, plans[i]) : 0;
            believed++;
            if (seconds < least * CLEARLY || best < 0) best = i, least = seconds;
        }
        if (own < least * CLEARLY) best = -1;
        cuda_must(c->state, cudaStreamSynchronize(c->state->stream), "choosing attention's kernel");
    }
    trial_end(&t);
    say(c, best, believed, count, least, own);
    return best;
}

// What the memory of choices knows of a shape: a key of words, and which plan, from 1 on; 0: ours.
static ProductKey words_of(const SdpaKey *key) {
    ProductKey words = {0};
    _Static_assert(sizeof *key <= sizeof words, "the memory's keys hold a shape");
    memcpy(&words, key, sizeof *key);
    return words;
}

static int choose_and_remember(const CudaSdpa *a, const Call *c, const SdpaKey *key, CudnnPlan *const *plans,
                               int count) {
    ProductKey words = words_of(key);
    ProductChoice choice = {.way = 0};
    if (!count) return -1;
    if (!a->memory) return choose(a, c, plans, count);
    if (!product_memory_find(a->memory, &words, &choice)) {
        choice.way = (uint64_t)(choose(a, c, plans, count) + 1);
        product_memory_settle(a->memory, &words, &choice);
    }
    return choice.way <= (uint64_t)count ? (int)choice.way - 1 : -1;
}

static const CudnnPlan *plan_for(CudaSdpa *a, const Call *c) {
    SdpaKey key = key_of(c, a->steady);
    bool found;
    Choice *choice = shape_cache_get(a->choices, &key, &found);
    // Making plans takes seconds: where shapes keep changing they are not worth it.
    if (found || shape_cache_count(a->choices) > MOST_SHAPES) return choice->plan;
    CudnnPlan *plans[MOST_PLANS];
    choice->graph = sdpa_graph(a->cudnn, &key);
    int count = cudnn_plans(choice->graph, !c->backward || a->steady, WORK_SDPA, plans, MOST_PLANS);
    int best = choose_and_remember(a, c, &key, plans, count);
    for (int i = 0; i < count; i++) {
        if (i == best)
            choice->plan = plans[i];
        else
            cudnn_plan_free(plans[i]);
    }
    return choice->plan;
}

static bool run(CudaSdpa *a, const Call *c, Dtype t) {
    if (!a || !fits(c, t) || !whole_tiles(a, c)) return false;
    const CudnnPlan *plan = plan_for(a, c);
    if (!plan) return false;
    size_t mark = cuda_scratch_mark(c->state);
    Run r = run_of(c, a->steady, plan, cuda_scratch(c->state, work_bytes(c, a->steady, plan)));
    cuda_list_call(c->state, start, &r, sizeof r);
    cuda_scratch_rewind(c->state, mark);
    return true;
}

bool cuda_sdpa_forward(CudaSdpa *a, Backend *b, void *o, float *lse, const void *q, const void *k, const void *v,
                       const AttentionShape *shape, Dtype t) {
    Call c = {.state = cuda_state(b), .backend = b, .shape = shape, .o = o, .lse = lse, .q = q, .k = k, .v = v};
    return run(a, &c, t);
}

bool cuda_sdpa_backward(CudaSdpa *a, Backend *b, void *dq, void *dk, void *dv, const void *d_o, const void *o,
                        const float *lse, const void *q, const void *k, const void *v, const AttentionShape *shape,
                        Dtype t) {
    Call c = {.state = cuda_state(b),
              .backend = b,
              .shape = shape,
              .o = (void *)o,
              .dq = dq,
              .dk = dk,
              .dv = dv,
              .lse = (float *)lse,
              .q = q,
              .k = k,
              .v = v,
              .d_o = d_o,
              .backward = true};
    return run(a, &c, t);
}
