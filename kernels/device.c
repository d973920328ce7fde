/* See device.h. */
#include "kernels/device.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"

// What travels between processes is read from the host's memory, which a GPU's is not.
static Backend *gpu(const DeviceOptions *o, Log *log, Error *error) {
    if (o->ranks > 1) {
        error_set(error, ERROR_USAGE, "a GPU serves a run of one process, and this one has %d: use device: cpu",
                  o->ranks);
        return NULL;
    }
    return cuda_backend_new(&(CudaOptions){.device = o->local_rank}, log, error);
}

Backend *device_backend_new(const DeviceOptions *o, Log *log, Error *error) {
    if (o->device == DEVICE_CPU) return cpu_backend_new(o->threads, NULL, log);
    Error why = {0};
    Backend *b = gpu(o, log, &why);
    if (b) return b;
    if (o->device == DEVICE_CUDA) {
        error_set(error, why.kind, "device: cuda: %s", why.message);
        return NULL;
    }
    log_info(log, "no GPU is used: %s; going on with the CPU", why.message);
    return cpu_backend_new(o->threads, NULL, log);
}
