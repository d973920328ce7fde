/* See cudnn_graph.h. */
#include "kernels/cuda/cudnn_graph.h"
#include "base/error.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DESCRIPTORS = 192, MOST_OPERATIONS = 48, PROPOSALS = 8, ALIGNMENT = 16 };

struct Cudnn {
    void *library;
    cudnnHandle_t handle;
    size_t (*version)(void);
    cudnnStatus_t (*create)(cudnnHandle_t *);
    cudnnStatus_t (*destroy)(cudnnHandle_t);
    cudnnStatus_t (*set_stream)(cudnnHandle_t, cudaStream_t);
    cudnnStatus_t (*make)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *);
    cudnnStatus_t (*drop)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*finish)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         const void *);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         int64_t *, void *);
    cudnnStatus_t (*execute)(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t);
};

struct CudnnGraph {
    Cudnn *cudnn;
    cudnnBackendDescriptor_t all[MOST_DESCRIPTORS], operations[MOST_OPERATIONS];
    int count, operation_count;
    int64_t next_name; // of what is never stored
    bool failed;
};

struct CudnnPlan {
    Cudnn *cudnn;
    cudnnBackendDescriptor_t plan;
    int64_t workspace; // bytes
};

// ---- the library ----

static bool find(Cudnn *c, const char *name, void *function) {
    void *found = dlsym(c->library, name);
    memcpy(function, &found, sizeof found); // a function's address in the clothes of an object's
    return found != NULL;
}

static bool find_all(Cudnn *c) {
    return find(c, "cudnnGetVersion", &c->version) && find(c, "cudnnCreate", &c->create) &&
           find(c, "cudnnDestroy", &c->destroy) && find(c, "cudnnSetStream", &c->set_stream) &&
           find(c, "cudnnBackendCreateDescriptor", &c->make) && find(c, "cudnnBackendDestroyDescriptor", &c->drop) &&
           find(c, "cudnnBackendFinalize", &c->finish) && find(c, "cudnnBackendSetAttribute", &c->set) &&
           find(c, "cudnnBackendGetAttribute", &c->get) && find(c, "cudnnBackendExecute", &c->execute);
}

// Older ones want work space of attention cleared by the caller; 9.10.0 and 9.10.1 are known to compute it wrongly.
static bool version_serves(size_t version) {
    enum { LEAST = 90600, FIRST_WRONG = 91000, LAST_WRONG = 91001 };
    return version >= LEAST && (version < FIRST_WRONG || version > LAST_WRONG);
}

Cudnn *cudnn_open(CudaStream stream, Log *log) {
    Cudnn *c = calloc(1, sizeof *c);
    check(c);
    c->library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!c->library)
        log_info(log, "attention by our own kernels: %s", dlerror());
    else if (find_all(c) && !version_serves(c->version()))
        log_warning(log, "attention by our own kernels: cuDNN %zu.%zu.%zu is not used; 9.10.2 and newer ones are",
                    c->version() / 10000, c->version() / 100 % 100, c->version() % 100);
    else if (!c->execute || c->create(&c->handle) != CUDNN_STATUS_SUCCESS ||
             c->set_stream(c->handle, stream) != CUDNN_STATUS_SUCCESS)
        log_warning(log, "attention by our own kernels: libcudnn.so.9 does not start");
    else
        return c;
    cudnn_close(c);
    return NULL;
}

// The library stays open, like all of CUDA's.
void cudnn_close(Cudnn *c) {
    if (c && c->handle) (void)c->destroy(c->handle);
    free(c);
}

size_t cudnn_version(const Cudnn *c) { return c->version(); }

// ---- descriptors ----

CudnnGraph *cudnn_graph_new(Cudnn *c) {
    CudnnGraph *g = calloc(1, sizeof *g);
    check(g);
    g->cudnn = c;
    g->next_name = 1000;
    return g;
}

void cudnn_graph_free(CudnnGraph *g) {
    if (!g) return;
    for (int i = g->count - 1; i >= 0; i--) (void)g->cudnn->drop(g->all[i]);
    free(g);
}

static cudnnBackendDescriptor_t make(CudnnGraph *g, cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t d = NULL;
    check(g->count < MOST_DESCRIPTORS);
    if (g->failed || g->cudnn->make(type, &d) != CUDNN_STATUS_SUCCESS) {
        g->failed = true;
        return NULL;
    }
    return g->all[g->count++] = d;
}

static void set(CudnnGraph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t count, const void *value) {
    if (!g->failed && g->cudnn->set(d, name, type, count, value) != CUDNN_STATUS_SUCCESS) g->failed = true;
}

static void set_one(CudnnGraph *g, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                    cudnnBackendDescriptor_t x) {
    set(g, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &x);
}

static void finish(CudnnGraph *g, cudnnBackendDescriptor_t d) {
    if (!g->failed && g->cudnn->finish(d) != CUDNN_STATUS_SUCCESS) g->failed = true;
}

// ---- tensors ----

static CudnnTensor tensor(CudnnGraph *g, int64_t name, cudnnDataType_t type, const int64_t *dim, const int64_t *stride,
                          bool between, bool value) {
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t alignment = ALIGNMENT;
    set(g, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &name);
    set(g, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(g, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim);
    set(g, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    set(g, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(g, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &between);
    set(g, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &value);
    finish(g, d);
    return d;
}

CudnnTensor cudnn_tensor(CudnnGraph *g, int64_t name, cudnnDataType_t type, const int64_t *dim, const int64_t *stride) {
    return tensor(g, name, type, dim, stride, false, false);
}

CudnnTensor cudnn_value(CudnnGraph *g, int64_t name) {
    static const int64_t one[4] = {1, 1, 1, 1};
    return tensor(g, name, CUDNN_DATA_FLOAT, one, one, false, true);
}

CudnnTensor cudnn_between_at(CudnnGraph *g, cudnnDataType_t type, const int64_t *dim, const int64_t *stride) {
    return tensor(g, g->next_name++, type, dim, stride, true, false);
}

CudnnTensor cudnn_between(CudnnGraph *g, cudnnDataType_t type, const int64_t *dim, bool transposed) {
    int64_t rows = transposed ? 1 : dim[3], columns = transposed ? dim[2] : 1;
    int64_t stride[4] = {dim[1] * dim[2] * dim[3], dim[2] * dim[3], rows, columns};
    return cudnn_between_at(g, type, dim, stride);
}

// ---- operations ----

static CudnnTensor add(CudnnGraph *g, cudnnBackendDescriptor_t operation, CudnnTensor out) {
    check(g->operation_count < MOST_OPERATIONS);
    finish(g, operation);
    g->operations[g->operation_count++] = operation;
    return out;
}

static const cudnnDataType_t IN_F32 = CUDNN_DATA_FLOAT; // what all is computed in, but for masks

static cudnnDataType_t pointwise_precision(cudnnPointwiseMode_t mode) {
    if (mode == CUDNN_POINTWISE_GEN_INDEX) return CUDNN_DATA_INT32;
    return mode == CUDNN_POINTWISE_CMP_GE ? CUDNN_DATA_BOOLEAN : IN_F32;
}

CudnnTensor cudnn_matmul(CudnnGraph *g, CudnnTensor a, CudnnTensor b, CudnnTensor out) {
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &IN_F32);
    finish(g, how);
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_one(g, d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_one(g, d, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_one(g, d, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
    set_one(g, d, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    return add(g, d, out);
}

CudnnTensor cudnn_pointwise(CudnnGraph *g, cudnnPointwiseMode_t mode, CudnnTensor x, CudnnTensor b, CudnnTensor t,
                            CudnnTensor out, int64_t axis) {
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    cudnnDataType_t precision = pointwise_precision(mode);
    set(g, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (mode == CUDNN_POINTWISE_GEN_INDEX) set(g, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    finish(g, how);
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_one(g, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_one(g, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) set_one(g, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t) set_one(g, d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    set_one(g, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, out);
    return add(g, d, out);
}

CudnnTensor cudnn_reduce(CudnnGraph *g, cudnnReduceTensorOp_t which, CudnnTensor x, CudnnTensor out) {
    cudnnBackendDescriptor_t how = make(g, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(g, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &which);
    set(g, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &IN_F32);
    finish(g, how);
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_one(g, d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    set_one(g, d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_one(g, d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
    return add(g, d, out);
}

CudnnTensor cudnn_reshape(CudnnGraph *g, CudnnTensor x, CudnnTensor out) {
    cudnnBackendDescriptor_t d = make(g, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_one(g, d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_one(g, d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out);
    return add(g, d, out);
}

// ---- plans ----

static int propose(CudnnGraph *g, cudnnBackendDescriptor_t *proposals) {
    Cudnn *c = g->cudnn;
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t count = 0;
    cudnnBackendDescriptor_t whole = make(g, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g->operation_count, g->operations);
    set(g, whole, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &c->handle);
    finish(g, whole);
    cudnnBackendDescriptor_t heuristic = make(g, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_one(g, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, whole);
    set(g, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(g, heuristic);
    for (int i = 0; i < PROPOSALS; i++) proposals[i] = make(g, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (g->failed || c->get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, PROPOSALS, &count,
                            proposals) != CUDNN_STATUS_SUCCESS)
        return 0;
    return count < PROPOSALS ? (int)count : PROPOSALS; // how many there are, not how many were wanted
}

// Whether the same call has the same bits each time, as the library notes of its engines.
static bool is_steady(Cudnn *c, cudnnBackendDescriptor_t proposal) {
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendDescriptor_t engine = NULL;
    int64_t count = 0;
    bool steady = c->make(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) == CUDNN_STATUS_SUCCESS &&
                  c->get(proposal, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine) ==
                      CUDNN_STATUS_SUCCESS &&
                  c->get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                         CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes) == CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; i < count && i < CUDNN_NUMERICAL_NOTE_TYPE_COUNT && steady; i++)
        steady = notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    if (engine) (void)c->drop(engine);
    return steady;
}

// Not through the graph's own calls: a proposal that fails spoils no other.
static bool compile(CudnnPlan *p, cudnnBackendDescriptor_t proposal, size_t most_workspace) {
    Cudnn *c = p->cudnn;
    int64_t count = 0;
    if (c->make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &p->plan) != CUDNN_STATUS_SUCCESS) return false;
    return c->set(p->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &c->handle) ==
               CUDNN_STATUS_SUCCESS &&
           c->set(p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &proposal) ==
               CUDNN_STATUS_SUCCESS &&
           c->finish(p->plan) == CUDNN_STATUS_SUCCESS &&
           c->get(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &p->workspace) ==
               CUDNN_STATUS_SUCCESS &&
           (size_t)p->workspace <= most_workspace;
}

int cudnn_plans(CudnnGraph *g, bool steady, size_t most_workspace, CudnnPlan **plans, int most) {
    cudnnBackendDescriptor_t proposals[PROPOSALS];
    int count = propose(g, proposals), found = 0;
    for (int i = 0; i < count && found < most; i++) {
        if (steady && !is_steady(g->cudnn, proposals[i])) continue;
        CudnnPlan *p = calloc(1, sizeof *p);
        check(p);
        p->cudnn = g->cudnn;
        if (compile(p, proposals[i], most_workspace))
            plans[found++] = p;
        else
            cudnn_plan_free(p);
    }
    return found;
}

void cudnn_plan_free(CudnnPlan *p) {
    if (!p) return;
    if (p->plan) (void)p->cudnn->drop(p->plan);
    free(p);
}

size_t cudnn_plan_workspace(const CudnnPlan *p) { return (size_t)p->workspace; }

bool cudnn_plan_run(const CudnnPlan *p, CudaStream stream, int count, const int64_t *names, void *const *memory,
                    void *workspace) {
    Cudnn *c = p->cudnn;
    // A pack is finished once: each run has its own.
    cudnnBackendDescriptor_t pack = NULL;
    bool ok = c->make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack) == CUDNN_STATUS_SUCCESS;
    ok = ok && c->set_stream(c->handle, stream) == CUDNN_STATUS_SUCCESS;
    ok = ok && c->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, names) == CUDNN_STATUS_SUCCESS;
    ok = ok && c->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, memory) ==
                   CUDNN_STATUS_SUCCESS;
    ok = ok &&
         c->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace) == CUDNN_STATUS_SUCCESS;
    ok = ok && c->finish(pack) == CUDNN_STATUS_SUCCESS && c->execute(c->handle, p->plan, pack) == CUDNN_STATUS_SUCCESS;
    if (pack) (void)c->drop(pack);
    return ok;
}
