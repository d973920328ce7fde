/* The calls of CUDA's runtime (and of its driver, for virtual memory) that the CUDA backend makes, over the shim's
 * memory and the streams of runtime_queue.cpp. Stricter than CUDA: copies from the host run from pinned memory only. */
#include "tests/simt/runtime_queue.h"
#include "tests/simt/shim/host.h"
#include <algorithm>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <unistd.h>

static constexpr size_t MEMORY = static_cast<size_t>(1) << 30, GRANULARITY = 2 << 20; // bytes of the device

static struct Device {
    cudaError_t last = cudaSuccess;
    std::map<const char *, size_t> pinned; // bytes
    size_t backed = 0, occupied = 0;       // of all pools; by a context and other processes
    std::map<void *, size_t> plain;        // bytes of cudaMalloc
    int major = 9, minor = 0;              // compute capability
    int failures[RUNTIME_CALLS] = {};
    int64_t calls[RUNTIME_CALLS] = {};
    std::shared_ptr<Capture> capture; // under way
} device;

static cudaError_t answer(cudaError_t status) {
    if (status != cudaSuccess) device.last = status;
    return status;
}

void runtime_fail(RuntimeCall call, int times) { device.failures[call] = times; }
int64_t runtime_calls(RuntimeCall call) { return device.calls[call]; }
void runtime_occupy(size_t bytes) { device.occupied = bytes; }
void runtime_capability(int major, int minor) { device.major = major, device.minor = minor; }
static bool fails(RuntimeCall call) {
    device.calls[call]++;
    return device.failures[call] > 0 && device.failures[call]--;
}

// ---- the device ----

cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int number) { return answer(number ? cudaErrorInvalidValue : cudaSuccess); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int number) {
    if (number) return answer(cudaErrorInvalidValue);
    snprintf(p->name, sizeof p->name, "stand-in");
    p->totalGlobalMem = MEMORY, p->major = device.major, p->minor = device.minor, p->multiProcessorCount = 4;
    int process = getpid(); // the device of another process is another one
    memcpy(p->uuid.bytes, &process, sizeof process);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int) { // there is no such device
    return snprintf(text, static_cast<size_t>(size), "ffff:ff:1f.0"), cudaSuccess;
}

// Writes over the stack that the next call's arguments will lie on: what they leave open differs from call to call.
__attribute__((noinline)) static void stir_stack() {
    static unsigned char value;
    volatile char memory[4096];
    value = static_cast<unsigned char>(value + 1);
    for (volatile char &byte : memory) byte = static_cast<char>(value);
}

cudaError_t cudaPeekAtLastError() {
    stir_stack();
    queue_progress();
    return device.last;
}
cudaError_t cudaGetLastError() {
    cudaError_t last = device.last;
    device.last = cudaSuccess;
    return last;
}

const char *cudaGetErrorName(cudaError_t status) { return status == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char *cudaGetErrorString(cudaError_t status) {
    switch (static_cast<int>(status)) {
    case cudaSuccess:
        return "no error";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureUnjoined:
        return "capturing stream has unjoined work";
    default:
        return "an error of the stand-in";
    }
}

// ---- captures ----

static cudaError_t spoil(cudaError_t status) {
    if (device.capture) device.capture->invalid = true;
    return answer(status);
}

static bool capturing() { return device.capture != nullptr; }

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    if (device.capture || s->capture) return answer(cudaErrorStreamCaptureUnsupported);
    device.capture = s->capture = std::make_shared<Capture>();
    s->capture->origin = s;
    s->capture->graph = std::make_unique<CUgraph_st>();
    s->front.clear();
    return cudaSuccess;
}

// Whether all nodes come before the front of the stream.
static bool joined(const CUstream_st *s) {
    const std::vector<Node> &nodes = s->capture->graph->nodes;
    std::vector<bool> seen(nodes.size());
    std::vector<size_t> open = s->front;
    while (!open.empty()) {
        size_t at = open.back();
        open.pop_back();
        if (seen[at]) continue;
        seen[at] = true;
        open.insert(open.end(), nodes[at].behind.begin(), nodes[at].behind.end());
    }
    return std::all_of(seen.begin(), seen.end(), [](bool b) { return b; });
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    *graph = nullptr;
    std::shared_ptr<Capture> c = s->capture;
    if (!c || c->origin != s) return answer(cudaErrorStreamCaptureUnmatched);
    bool whole = joined(s);
    for (CUstream_st *each : queue_streams())
        if (each->capture == c) each->capture = nullptr;
    device.capture = nullptr;
    if (c->invalid) return answer(cudaErrorStreamCaptureInvalidated);
    if (!whole) return answer(cudaErrorStreamCaptureUnjoined);
    *graph = c->graph.release();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = nullptr;
    if (fails(RUNTIME_INSTANTIATE)) return answer(cudaErrorMemoryAllocation);
    *exec = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
    if (s->capture) return spoil(cudaErrorStreamCaptureUnsupported);
    if (fails(RUNTIME_GRAPH_LAUNCH)) return answer(cudaErrorUnknown);
    queue_launch(s, exec);
    queue_progress();
    return cudaSuccess;
}

// ---- streams and events ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    queue_take_kernels();
    *s = new CUstream_st;
    queue_streams().push_back(*s);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
    queue_finish(s);
    queue_streams().erase(std::find(queue_streams().begin(), queue_streams().end(), s));
    return delete s, cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    queue_finish(s);
    return cudaSuccess;
}

void runtime_put(CUstream_st *s, bool (*work)(void *context), void *context) {
    queue_put_waiting(s, [=] { return work(context); });
    queue_progress();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    *e = new CUevent_st;
    (*e)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    if (!from->timed || !to->timed) return answer(cudaErrorInvalidResourceHandle);
    *milliseconds = static_cast<float>(1e3 * (to->last->at - from->last->at));
    return from->last->done && to->last->done ? cudaSuccess : answer(cudaErrorNotReady);
}
cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    e->capture = s->capture;
    if (s->capture) {
        e->nodes = s->front;
        return cudaSuccess;
    }
    e->last = std::make_shared<Record>(Record{false, 0});
    s->pieces.push_back({Piece::RECORD, nullptr, e->last});
    return cudaSuccess;
}

static cudaError_t wait_in_capture(cudaStream_t s, const CUevent_st *e) {
    if (!e->capture) return spoil(cudaErrorStreamCaptureIsolation);
    if (e->capture != device.capture || (s->capture && s->capture != e->capture))
        return spoil(cudaErrorStreamCaptureMerge);
    if (!s->capture) s->front.clear();
    s->capture = e->capture;
    for (size_t node : e->nodes)
        if (std::find(s->front.begin(), s->front.end(), node) == s->front.end()) s->front.push_back(node);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    if (s->capture || (e->capture && e->capture == device.capture)) return wait_in_capture(s, e);
    if (e->capture) return answer(cudaErrorCapturedEvent);
    s->pieces.push_back({Piece::WAIT, nullptr, e->last});
    queue_progress();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (e->capture) return spoil(cudaErrorCapturedEvent);
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    queue_reach(e->last);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    queue_progress();
    return e->last->done ? cudaSuccess : cudaErrorNotReady;
}

// ---- memory ----

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    if (fails(RUNTIME_MALLOC)) return *memory = nullptr, answer(cudaErrorMemoryAllocation);
    *memory = simt_allocate(bytes);
    device.backed += device.plain[*memory] = (bytes + GRANULARITY - 1) / GRANULARITY * GRANULARITY;
    return cudaSuccess;
}
cudaError_t cudaFree(void *memory) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    queue_finish(nullptr);
    if (memory) device.backed -= device.plain.at(memory);
    device.plain.erase(memory);
    return simt_release(memory), cudaSuccess;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    *memory = malloc(bytes);
    if (!*memory) return answer(cudaErrorMemoryAllocation);
    memset(*memory, 0xff, bytes); // NaN: what nothing was copied to yet shows
    device.pinned[static_cast<char *>(*memory)] = bytes;
    if (flags & cudaHostAllocMapped) simt_share(*memory, bytes);
    return cudaSuccess;
}
// Waits for nothing: who frees memory must know that no copy uses it.
cudaError_t cudaFreeHost(void *memory) {
    if (capturing()) return spoil(cudaErrorStreamCaptureUnsupported);
    device.pinned.erase(static_cast<char *>(memory));
    simt_unshare(memory);
    return free(memory), cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *total = MEMORY, *available = MEMORY - device.occupied - device.backed;
    return cudaSuccess;
}

static bool is_pinned(const void *memory, size_t bytes) {
    const char *at = static_cast<const char *>(memory);
    auto next = device.pinned.upper_bound(at);
    if (next == device.pinned.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

static bool usable(const void *memory, size_t bytes, bool host, const char *what) {
    if (host ? is_pinned(memory, bytes) : simt_holds(memory, bytes)) return true;
    queue_fault("%s of %zu bytes at %p, which is not %s memory (any more)", what, bytes, memory,
                host ? "pinned" : "device");
    return false;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s) {
    queue_put(s, [=] {
        bool any = kind == cudaMemcpyDefault; // each end is what its address says
        bool from_host = kind == cudaMemcpyHostToDevice || (any && is_pinned(from, bytes));
        bool to_host = kind == cudaMemcpyDeviceToHost || (any && is_pinned(to, bytes));
        if (usable(from, bytes, from_host, "a copy from") && usable(to, bytes, to_host, "a copy to"))
            memcpy(to, from, bytes);
    });
    queue_progress();
    return cudaSuccess;
}

cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int value, size_t width, size_t height, cudaStream_t s) {
    queue_put(s, [=] {
        for (size_t row = 0; row < height; row++) {
            char *at = static_cast<char *>(memory) + row * pitch;
            if (usable(at, width, false, "setting")) memset(at, value, width);
        }
    });
    queue_progress();
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t s) {
    return cudaMemset2DAsync(memory, bytes, value, bytes, 1, s);
}

// ---- virtual memory: handles are their sizes ----

static bool in_units(size_t bytes) { return bytes && bytes % GRANULARITY == 0; }
static CUresult reserve(CUdeviceptr *address, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
    if (!in_units(bytes)) return CUDA_ERROR_INVALID_VALUE;
    void *memory = simt_reserve(bytes);
    *address = reinterpret_cast<CUdeviceptr>(memory);
    return memory ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
static CUresult unreserve(CUdeviceptr address, size_t) {
    simt_release(reinterpret_cast<void *>(address));
    return CUDA_SUCCESS;
}
static CUresult create(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *,
                       unsigned long long) {
    if (!in_units(bytes)) return CUDA_ERROR_INVALID_VALUE;
    if (bytes > MEMORY - device.backed) return CUDA_ERROR_OUT_OF_MEMORY;
    device.backed += bytes;
    *handle = bytes;
    return CUDA_SUCCESS;
}
static CUresult release(CUmemGenericAllocationHandle) { return CUDA_SUCCESS; } // mapped memory lives until unmapped
static CUresult map(CUdeviceptr, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long) {
    return in_units(bytes) && !offset && handle == bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
static CUresult unmap(CUdeviceptr address, size_t bytes) { // waits for nothing
    simt_unback(reinterpret_cast<void *>(address), bytes);
    device.backed -= bytes;
    return CUDA_SUCCESS;
}
// Mapped memory is nobody's to touch before.
static CUresult allow(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count) {
    if (!in_units(bytes) || count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE)
        return CUDA_ERROR_INVALID_VALUE;
    simt_back(reinterpret_cast<void *>(address), bytes);
    return CUDA_SUCCESS;
}
static CUresult granularity(size_t *bytes, const CUmemAllocationProp *, CUmemAllocationGranularity_flags) {
    return *bytes = GRANULARITY, CUDA_SUCCESS;
}

template <class F> static void *place_of(F *function) { return reinterpret_cast<void *>(function); }

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
    const struct {
        const char *name;
        void *function;
    } known[] = {{"cuMemAddressReserve", place_of(reserve)},
                 {"cuMemAddressFree", place_of(unreserve)},
                 {"cuMemCreate", place_of(create)},
                 {"cuMemRelease", place_of(release)},
                 {"cuMemMap", place_of(map)},
                 {"cuMemUnmap", place_of(unmap)},
                 {"cuMemSetAccess", place_of(allow)},
                 {"cuMemGetAllocationGranularity", place_of(granularity)}};
    *found = cudaDriverEntryPointSymbolNotFound;
    for (const auto &k : known)
        if (!strcmp(k.name, name)) *function = k.function, *found = cudaDriverEntryPointSuccess;
    return *found == cudaDriverEntryPointSuccess ? cudaSuccess : answer(cudaErrorSymbolNotFound);
}
