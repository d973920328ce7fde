/* Whether an NCCL that was found goes with the CUDA that this program runs on. */
#pragma once
#include "base/error.h"

typedef struct NcclFacts {
    int version;         // 10000 major + 100 minor + patch, as NCCL gives it
    int built_for;       // CUDA it was built for, 1000 major + 10 minor; 0: it does not say
    int runtime, driver; // CUDA of this program, and the newest that the driver knows; alike
} NcclFacts;

// What a library of NCCL says in its constants ("NCCL version 2.28.9+cuda13.0"); 0 where it says nothing.
int nccl_built_for(const char *path);
bool nccl_fits(const NcclFacts *, Error *);
