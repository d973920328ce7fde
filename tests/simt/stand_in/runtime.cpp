/* See cuda_runtime_api.h. */
#include "tests/simt/shim/host.h"
#include <cstring>
extern "C" {
#include "tests/simt/stand_in/cublasLt.h"
}

struct StandInEvent {
    double at;
};

cudaError_t cudaMalloc(void **memory, size_t bytes) {
    *memory = stand_in.no_memory ? nullptr : simt_allocate(bytes);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *memory) {
    simt_release(memory);
    return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void *memory, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
    for (size_t i = 0; i < height; i++) memset(static_cast<char *>(memory) + i * pitch, value, width);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = new StandInEvent{0};
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
    e->at = stand_in.now;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    *milliseconds = static_cast<float>(1e3 * (to->at - from->at));
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "out of memory"; }
