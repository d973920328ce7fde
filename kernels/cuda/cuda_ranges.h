/* Ranges for profilers (Backend.range_push), where the module was built with NVTX's headers. */
#pragma once
#include "kernels/backend.h"

void cuda_ranges_install(Backend *);
