/* What the stand-in for NCCL (stand_in/nccl.c) wants from the program that opens it. */
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/comm/comm.h"

extern Comm *stand_in_world;     // over which links talk
extern bool stand_in_has_failed; // what NCCL says of its links
bool stand_in_holds(const void *memory, size_t bytes); // whether all of it is device memory

#ifdef __cplusplus
}
#endif
