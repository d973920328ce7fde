/* See gpu_facts.h. */
#include "kernels/cuda/host/gpu_facts.h"

enum { LEAST_MAJOR = 8, LEAST_MINOR = 0 };

bool gpu_present(const GpuFacts *f, Error *error) {
    if (!f->driver)
        return error_set(error, ERROR_USAGE, "CUDA %d.%d is here, but no driver for a GPU: install NVIDIA's",
                         f->runtime / 1000, f->runtime % 1000 / 10);
    if (f->driver / 1000 < f->runtime / 1000)
        return error_set(error, ERROR_USAGE,
                         "the driver knows CUDA up to %d.%d, this program was built with %d.%d: update the driver",
                         f->driver / 1000, f->driver % 1000 / 10, f->runtime / 1000, f->runtime % 1000 / 10);
    if (f->count < 1)
        return error_set(error, ERROR_USAGE, "a driver is here, but no GPU is visible (see CUDA_VISIBLE_DEVICES)");
    if (f->device < 0 || f->device >= f->count)
        return error_set(error, ERROR_USAGE, "there is no GPU %d: %d %s visible, counted from 0", f->device, f->count,
                         f->count == 1 ? "is" : "are");
    return true;
}

bool gpu_new_enough(const GpuFacts *f, Error *error) {
    if (f->major > LEAST_MAJOR || (f->major == LEAST_MAJOR && f->minor >= LEAST_MINOR)) return true;
    return error_set(error, ERROR_USAGE, "GPU %d (%s) has compute capability %d.%d; at least %d.%d (Ampere) is needed",
                     f->device, f->name, f->major, f->minor, LEAST_MAJOR, LEAST_MINOR);
}
