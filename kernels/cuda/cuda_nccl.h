/* NCCL, opened at run time (libnccl.so.2, or what BIFOCAL_NCCL names; "off": nothing): the functions that links between
 * GPUs are made of, for cuda_nccl.c and cuda_link.c. Needs NCCL's header alone. */
#pragma once
#include "kernels/cuda/cuda_state.h"
#include "kernels/cuda/host/nccl_facts.h"
#include <nccl.h>

typedef struct NcclCalls {
    ncclResult_t (*version)(int *);
    ncclResult_t (*new_id)(ncclUniqueId *);
    ncclResult_t (*open)(ncclComm_t *, int ranks, ncclUniqueId, int rank);
    ncclResult_t (*open_with)(ncclComm_t *, int ranks, ncclUniqueId, int rank, ncclConfig_t *);
    ncclResult_t (*destroy)(ncclComm_t);
    ncclResult_t (*abort)(ncclComm_t);
    ncclResult_t (*fault)(ncclComm_t, ncclResult_t *);
    const char *(*text)(ncclResult_t);
    ncclResult_t (*group_start)(void);
    ncclResult_t (*group_end)(void);
    ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, CudaStream);
    ncclResult_t (*reduce_scatter)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, CudaStream);
    ncclResult_t (*all_gather)(const void *, void *, size_t, ncclDataType_t, ncclComm_t, CudaStream);
    ncclResult_t (*reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int root, ncclComm_t, CudaStream);
    ncclResult_t (*broadcast)(const void *, void *, size_t, ncclDataType_t, int root, ncclComm_t, CudaStream);
    ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int peer, ncclComm_t, CudaStream);
    ncclResult_t (*receive)(void *, size_t, ncclDataType_t, int peer, ncclComm_t, CudaStream);
} NcclCalls;

typedef struct CudaNccl {
    NcclCalls calls;
    NcclFacts facts;
    bool usable;
    int links; // opened so far
    char why_not[232];
} CudaNccl;

struct DeviceLink;
struct DeviceLinkId;
// A link of a group, on a lane of its own (cuda_link.c).
struct DeviceLink *cuda_link_open(Backend *, const CudaNccl *, const ncclUniqueId *, int rank, int size, int lane,
                                  const char *name, Error *);
// One between two ranks for messages, on a stream of its own (cuda_messages.c).
struct DeviceLink *cuda_messages_open(Backend *, const CudaNccl *, const ncclUniqueId *, int rank, const char *name,
                                      Error *);
// ends the process where `status` is an error; of a call in a group of ranks
void cuda_nccl_must(CudaState *, const NcclCalls *, ncclResult_t status, const char *group, const char *what);
