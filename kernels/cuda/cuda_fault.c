/* Errors of the device. They surface some time after the call that caused them, and then stay: the first is kept with
 * what was started last, and whoever knows the operator (the tape) asks for it. */
#include "kernels/cuda/cuda_list.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>

static void keep(CudaState *s, cudaError_t status, const char *what) {
    if (status == cudaSuccess || s->fault[0]) return;
    snprintf(s->fault, sizeof s->fault, "%s (%s), noticed %s %s%s", cudaGetErrorString(status),
             cudaGetErrorName(status), s->synchronous ? "in" : "at", what,
             s->synchronous ? "" : "; it may stem from earlier work: BIFOCAL_CUDA_SYNC=1 finds where");
}

void cuda_after(CudaState *s, const char *what) {
    if (cuda_list_writing(s))
        cuda_list_note(s, what);
    else
        cuda_look(s, what);
}

void cuda_look(CudaState *s, const char *what) {
    cudaError_t status = cudaPeekAtLastError();
    if (status != cudaSuccess && cuda_list_capture_fails(s, status)) return;
    keep(s, s->synchronous ? cudaStreamSynchronize(s->stream) : cudaSuccess, what);
    keep(s, status, what);
}

void cuda_fail(const CudaState *s, const char *what, const char *reason) {
    log_error(s->log, "GPU %d (%s): %s: %s", s->gpu.device, s->gpu.name, what, reason);
    if (!s->log) fprintf(stderr, "GPU %d (%s): %s: %s\n", s->gpu.device, s->gpu.name, what, reason);
    abort();
}

void cuda_must(CudaState *s, int status, const char *what) {
    if (status != cudaSuccess && cuda_list_capture_fails(s, status)) return;
    keep(s, (cudaError_t)status, what);
    if (s->fault[0]) cuda_fail(s, what, s->fault);
}

const char *cuda_fault(Backend *b) {
    const CudaState *s = cuda_state(b);
    return s->fault[0] ? s->fault : NULL;
}
