/* The CUDA backend on a machine without a GPU: all of its own files but attention by cuDNN, over the shim and
 * the stand-ins of CUDA's runtime and of cuBLASLt. Stands in for cuda_backend_new, so that gpu_check and tests
 * of what lies above run anywhere; with the shim's way of looking at every access. */
#include "tests/simt/runtime_queue.h"
#include <cstdio>
extern "C" {
#include "kernels/cuda.h"
#include "tests/simt/cublaslt.h"
}

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

void stand_in_enqueue(cudaStream_t stream, void (*run)(const void *), const void *arguments, size_t bytes) {
    const char *first = static_cast<const char *>(arguments);
    std::vector<char> copy(first, first + bytes);
    queue_put(stream, [run, copy] { run(copy.data()); });
}
