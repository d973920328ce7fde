/* Which call to other GPUs a stream is in: noted by the GPU itself, in graphs too, for the thread that watches. */
#pragma once
#include "kernels/comm/device_link.h"
#include "kernels/cuda/cuda_state.h"

typedef struct CudaAnnouncer CudaAnnouncer;
CudaAnnouncer *cuda_announcer_new(Backend *);
void cuda_announcer_free(CudaAnnouncer *); // once the device is done with it; NULL is allowed
// Around what a call starts in the queue. The number is that of equal calls.
int cuda_announced_call(CudaAnnouncer *, const DeviceCall *);
void cuda_announce_begin(CudaAnnouncer *, const CudaQueue *, int call);
void cuda_announce_end(CudaAnnouncer *, const CudaQueue *, int call);
bool cuda_announced(const CudaAnnouncer *, DeviceUnderWay *); // DeviceLink.under_way
