/* Watching what the GPU does (Backend.watch_begin), where the module was built with CUPTI's headers. */
#pragma once
#include "kernels/cuda/cuda_state.h"

void cuda_cupti_install(Backend *);
void cuda_cupti_close(Backend *); // nothing where it was not installed
