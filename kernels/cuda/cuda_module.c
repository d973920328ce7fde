/* The module itself: what it exports, and how a backend on a GPU is opened and closed. */
#include "base/error.h"
#include "kernels/cuda/cuda_cupti.h"
#include "kernels/cuda/cuda_ranges.h"
#include "kernels/cuda/cuda_state.h"
#include <ctype.h>
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((visibility("default"))) extern const CudaModule bifocal_cuda_module;

// Streams that share one of the GPU's queues hold each other up where one waits for another GPU: all get their own. CUDA
// reads this when it is first called.
__attribute__((constructor)) static void give_each_stream_a_queue(void) {
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
}

// Without a driver the runtime answers politely; anything else that is wrong with it is an error.
static bool look(GpuFacts *f, Error *error) {
    (void)cudaRuntimeGetVersion(&f->runtime);
    if (cudaDriverGetVersion(&f->driver) != cudaSuccess) f->driver = 0;
    cudaError_t status = cudaGetDeviceCount(&f->count);
    if (status != cudaSuccess) f->count = 0;
    (void)cudaGetLastError(); // what it says is in `status`
    if (status == cudaSuccess || status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice) return true;
    return error_set(error, ERROR_FAILED, "CUDA does not start: %s", cudaGetErrorString(status));
}

static int count(Error *error) {
    GpuFacts f = {0};
    if (!look(&f, error)) return -1;
    return f.driver ? f.count : (gpu_present(&f, error), -1);
}

static void describe(int device, char *name, size_t name_size, char *pci, size_t pci_size) {
    struct cudaDeviceProp *p = calloc(1, sizeof *p);
    check(p);
    if (cudaGetDeviceProperties(p, device) == cudaSuccess) snprintf(name, name_size, "%s", p->name);
    if (cudaDeviceGetPCIBusId(pci, (int)pci_size, device) != cudaSuccess) *pci = 0;
    for (char *c = pci; *c; c++) *c = (char)tolower(*c); // as the system writes it
    (void)cudaGetLastError();
    free(p);
}

static bool choose(CudaState *s, int device, Error *error) {
    struct cudaDeviceProp *p = calloc(1, sizeof *p);
    check(p);
    s->gpu.device = device;
    bool ok = look(&s->gpu, error) && gpu_present(&s->gpu, error);
    if (ok) {
        cudaError_t status = cudaGetDeviceProperties(p, device);
        if (status == cudaSuccess) status = cudaSetDevice(device);
        if (status != cudaSuccess)
            ok = error_set(error, ERROR_FAILED, "GPU %d does not start: %s", device, cudaGetErrorString(status));
    }
    if (ok) {
        snprintf(s->gpu.name, sizeof s->gpu.name, "%.100s", p->name);
        s->gpu.major = p->major, s->gpu.minor = p->minor, s->gpu.memory = p->totalGlobalMem;
        s->multiprocessors = p->multiProcessorCount;
        snprintf(s->architecture, sizeof s->architecture, "sm_%d%d", p->major % 100, p->minor % 10);
        ok = gpu_new_enough(&s->gpu, error);
    }
    free(p);
    return ok;
}

static void destroy(Backend *b) {
    CudaState *s = cuda_state(b);
#ifdef BIFOCAL_CUPTI
    cuda_cupti_close(b);
#endif
    if (s->stream) (void)cudaStreamSynchronize(s->stream);
#ifdef BIFOCAL_NCCL
    cuda_nccl_close(s);
#endif
    cuda_attention_close(s);
    cuda_products_close(s);
    cuda_lists_close(s);
    cuda_reads_close(s);
    cuda_slabs_close(s);
    cuda_staging_close(s);
    cuda_memory_close(s);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    free(s);
    free(b);
}

static bool start(CudaState *s, Error *error) {
    cudaError_t status = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    if (status != cudaSuccess)
        return error_set(error, ERROR_FAILED, "GPU %d does not start: %s", s->gpu.device, cudaGetErrorString(status));
    return cuda_memory_open(s, error) && cuda_staging_open(s, error) && cuda_slabs_open(s, error) &&
           cuda_reads_open(s, error) && cuda_lists_open(s, error) && cuda_products_open(s, error);
}

static Backend *open_backend(const CudaOptions *options, Log *log, Error *error) {
    Backend *b = calloc(1, sizeof *b);
    CudaState *s = calloc(1, sizeof *s);
    check(b && s);
    *b = (Backend){.name = "cuda",
                   .isa = s->architecture,
                   .device = s->gpu.name,
                   .apart = true,
                   .state = s,
                   .destroy = destroy,
                   .fault = cuda_fault};
    s->log = log;
    s->synchronous = options->synchronous;
    if (!choose(s, options->device, error) || !start(s, error)) {
        destroy(b);
        return NULL;
    }
    cuda_memory_install(b);
    cuda_copy_install(b);
    cuda_reads_install(b);
    cuda_lists_install(b);
    cuda_products_install(b);
    cuda_calls_install(b);
    cuda_cross_entropy_install(b);
    cuda_fp8_install(b);
    cuda_attention_install(b);
#ifdef BIFOCAL_NCCL
    cuda_nccl_install(b);
#endif
#ifdef BIFOCAL_CUPTI
    cuda_cupti_install(b);
#endif
#ifdef BIFOCAL_NVTX
    cuda_ranges_install(b);
#endif
    cuda_offload_install(b);
    log_info(log, "GPU %d: %s, %s, %d multiprocessors, %.1f GiB%s", s->gpu.device, s->gpu.name, s->architecture,
             s->multiprocessors, (double)s->gpu.memory / 0x1p30, s->synchronous ? "; waiting behind every kernel" : "");
    return b;
}

static void describe_links(char *text, size_t size) {
#ifdef BIFOCAL_NCCL
    cuda_nccl_describe(text, size);
#else
    snprintf(text, size, "none: its header was not found when the module was built");
#endif
}

const CudaModule bifocal_cuda_module = {.version = BIFOCAL_VERSION,
                                        .backend_size = sizeof(Backend),
                                        .count = count,
                                        .open = open_backend,
                                        .describe = describe,
                                        .describe_links = describe_links};
