/* What tests see of the stand-in for cuBLASLt (cublaslt.c). */
#pragma once
#include <cublasLt.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct StandIn {                                    // what the library is like; set by tests at any time
    int kernels;                                            // at most 8
    double seconds[8];                                      // of each on the runtime's clock
    double epilogue_seconds;                                // more where more than a bias is to be done
    int (*supports)(cublasLtEpilogue_t, cudaDataType bias); // NULL: everything
    int calls, last, mistakes; // of cublasLtMatmul; the kernel of the last; calls that broke a rule
    const char *mistake;       // the first rule
} StandIn;
extern StandIn stand_in;

// Puts run(arguments) into a stream; the arguments are copied.
void stand_in_enqueue(cudaStream_t, void (*run)(const void *arguments), const void *arguments, size_t bytes);

#ifdef __cplusplus
}
#endif
