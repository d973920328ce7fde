/* See cuda_nccl.h: finding NCCL, and whether it goes with this CUDA. What links do is in cuda_link.c. */
#include "kernels/cuda/cuda_nccl.h"
#include "base/error.h"
#include "kernels/comm/device_link.h"
#include "kernels/cuda/cuda_list.h"
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool find(void *library, const char *name, void *function, CudaNccl *n) {
    void **place = function;
    *place = dlsym(library, name);
    if (!*place) snprintf(n->why_not, sizeof n->why_not, "the NCCL that was found has no %s", name);
    return *place;
}

static bool find_calls(void *library, CudaNccl *n) {
    NcclCalls *c = &n->calls;
    return find(library, "ncclGetVersion", &c->version, n) && find(library, "ncclGetUniqueId", &c->new_id, n) &&
           find(library, "ncclCommInitRank", &c->open, n) && find(library, "ncclCommInitRankConfig", &c->open_with, n) && find(library, "ncclCommDestroy", &c->destroy, n) &&
           find(library, "ncclCommAbort", &c->abort, n) && find(library, "ncclCommGetAsyncError", &c->fault, n) &&
           find(library, "ncclGetErrorString", &c->text, n) && find(library, "ncclGroupStart", &c->group_start, n) &&
           find(library, "ncclGroupEnd", &c->group_end, n) && find(library, "ncclAllReduce", &c->all_reduce, n) &&
           find(library, "ncclReduceScatter", &c->reduce_scatter, n) &&
           find(library, "ncclAllGather", &c->all_gather, n) && find(library, "ncclReduce", &c->reduce, n) &&
           find(library, "ncclBroadcast", &c->broadcast, n) && find(library, "ncclSend", &c->send, n) &&
           find(library, "ncclRecv", &c->receive, n);
}

// What it says of itself, and what CUDA says.
static void learn(CudaNccl *n) {
    Dl_info place;
    void *function;
    memcpy(&function, &n->calls.version, sizeof function);
    (void)n->calls.version(&n->facts.version);
    if (dladdr(function, &place) && place.dli_fname) n->facts.built_for = nccl_built_for(place.dli_fname);
    (void)cudaRuntimeGetVersion(&n->facts.runtime);
    (void)cudaDriverGetVersion(&n->facts.driver);
}

// It stays open until the process ends, as CUDA's own libraries do. Ranks may start the same list as a graph and one by
// one: NCCL must not have them agree on memory while a graph is captured. NCCL_LAUNCH_ORDER_IMPLICIT stays off: where no
// call begins before those of other groups that were made earlier, a stage's message that waits for the one before it
// holds up the receive of what the other stage would have to send first.
static CudaNccl *open_nccl(void) {
    CudaNccl *n = calloc(1, sizeof *n);
    const char *named = getenv("BIFOCAL_NCCL");
    check(n);
    if (named && !strcmp(named, "off")) {
        snprintf(n->why_not, sizeof n->why_not, "BIFOCAL_NCCL=off");
        return n;
    }
    setenv("NCCL_GRAPH_REGISTER", "0", 0);
    void *library = dlopen(named && *named ? named : "libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        snprintf(n->why_not, sizeof n->why_not, "no NCCL: %s", dlerror());
    else if (find_calls(library, n))
        n->usable = true;
    if (n->usable) learn(n);
    return n;
}

static CudaNccl *nccl_of(CudaState *s) {
    if (!s->nccl) s->nccl = open_nccl();
    return s->nccl;
}

static void identify(Backend *b, DeviceIdentity *out) {
    CudaState *s = cuda_state(b);
    const CudaNccl *n = nccl_of(s);
    Error error = {0};
    struct cudaDeviceProp *p = calloc(1, sizeof *p);
    check(p);
    cuda_must(s, cudaGetDeviceProperties(p, s->gpu.device), "the GPU's name");
    memcpy(out->device, &p->uuid, sizeof out->device);
    free(p);
    out->version = n->facts.version;
    out->can_link = n->usable;
    out->wrong = n->usable && !nccl_fits(&n->facts, &error);
    snprintf(out->why_not, sizeof out->why_not, "%s", out->wrong ? error.message : n->why_not);
}

static bool new_id(Backend *b, DeviceLinkId *out, Error *error) {
    const CudaNccl *n = nccl_of(cuda_state(b));
    ncclUniqueId id;
    ncclResult_t status = n->calls.new_id(&id);
    if (status != ncclSuccess)
        return error_set(error, ERROR_FAILED, "NCCL has no place to meet: %s", n->calls.text(status));
    memcpy(out->bytes, &id, sizeof id);
    return true;
}

// Groups of a process may be under way in an order of their own on every rank: each has a lane, as far as they reach.
static DeviceLink *open_link(Backend *b, DeviceLinkKind kind, const DeviceLinkId *id, int rank, int size,
                             const char *name, Error *error) {
    CudaNccl *n = nccl_of(cuda_state(b));
    ncclUniqueId place;
    memcpy(&place, id->bytes, sizeof place);
    if (kind == LINK_MESSAGES) return cuda_messages_open(b, n, &place, rank, name, error);
    int lane = CUDA_FIRST_LINK_LANE + n->links++ % (CUDA_LANES - CUDA_FIRST_LINK_LANE);
    return cuda_link_open(b, n, &place, rank, size, lane, name, error);
}

void cuda_nccl_must(CudaState *s, const NcclCalls *calls, ncclResult_t status, const char *group, const char *what) {
    char text[256];
    if (status == ncclSuccess || status == ncclInProgress) return;
    if (cuda_list_capture_fails(s, cudaErrorUnknown)) return;
    snprintf(text, sizeof text, "NCCL in group %s: %s", group, calls->text(status));
    cuda_fail(s, what, text);
}

static const DeviceLinks links = {identify, new_id, open_link};

void cuda_nccl_install(Backend *b) { b->links = &links; }

void cuda_nccl_close(CudaState *s) {
    free(s->nccl);
    s->nccl = NULL;
}

// "NCCL 2.28.9, built for CUDA 13.0", or why there is none that goes with this program.
void cuda_nccl_describe(char *text, size_t size) {
    CudaNccl *n = open_nccl();
    Error error = {0};
    const NcclFacts *f = &n->facts;
    if (!n->usable || !nccl_fits(f, &error))
        snprintf(text, size, "none: %s", n->usable ? error.message : n->why_not);
    else if (f->built_for)
        snprintf(text, size, "%d.%d.%d, built for CUDA %d.%d", f->version / 10000, f->version / 100 % 100,
                 f->version % 100, f->built_for / 1000, f->built_for % 1000 / 10);
    else
        snprintf(text, size, "%d.%d.%d", f->version / 10000, f->version / 100 % 100, f->version % 100);
    free(n);
}
