/* See device.h. */
#include "kernels/device.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cuda.h"

// Several processes of a machine take its GPUs in turn.
static int gpu_of(const DeviceOptions *o, int gpus) { return gpus > 0 ? o->local_rank % gpus : 0; }

static Backend *gpu(const DeviceOptions *o, Log *log, Error *error) {
    Error unknown = {0}; // cuda_backend_new says it better
    int gpus = o->local_rank ? cuda_count(&unknown) : 1;
    return cuda_backend_new(&(CudaOptions){.device = gpu_of(o, gpus)}, log, error);
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

DeviceSeat device_seat(const DeviceOptions *o) {
    DeviceSeat seat = {0};
    Error unknown = {0};
    int gpus = o->device == DEVICE_CPU ? 0 : cuda_count(&unknown);
    if (gpus <= 0) return seat;
    seat.gpus = gpus;
    seat.gpu = gpu_of(o, gpus);
    cuda_describe(seat.gpu, seat.name, sizeof seat.name, seat.pci, sizeof seat.pci);
    return seat;
}
