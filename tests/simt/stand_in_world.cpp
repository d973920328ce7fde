/* What the stand-in for NCCL wants from a program on the shim; see nccl_stand_in.h. */
#include "tests/simt/nccl_stand_in.h"
#include "tests/simt/shim/host.h"

Comm *stand_in_world;
bool stand_in_has_failed;
bool stand_in_holds(const void *memory, size_t bytes) { return simt_holds(memory, bytes); }
