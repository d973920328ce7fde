/* A module that stands in for the CUDA one, so that every answer of the loader is seen without CUDA. What it is comes
 * from the build: MODULE_VERSION, MODULE_SIZE (of a Backend), MODULE_GPUS (< 0: no driver). */
#include "kernels/cuda.h"
#include <stdio.h>
#include <stdlib.h>

extern const CudaModule bifocal_cuda_module;

static int count(Error *error) {
    if (MODULE_GPUS < 0) error_set(error, ERROR_USAGE, "no driver in this test");
    return MODULE_GPUS;
}

static void destroy(Backend *b) { free(b); }

static Backend *open_backend(const CudaOptions *options, Log *log, Error *error) {
    if (MODULE_GPUS <= 0) {
        error_set(error, ERROR_USAGE, "no driver in this test");
        return NULL;
    }
    Backend *b = calloc(1, sizeof *b);
    if (!b) abort();
    *b = (Backend){.name = "cuda",
                   .isa = options->synchronous ? "waiting"
                          : options->device    ? "the other one"
                                               : "sm_90",
                   .destroy = destroy};
    log_info(log, "GPU %d of a test", options->device);
    return b;
}

static void describe(int device, char *name, size_t name_size, char *pci, size_t pci_size) {
    snprintf(name, name_size, "GPU %d of a test", device);
    snprintf(pci, pci_size, "0000:%02x:00.0", device);
}

static void describe_links(char *text, size_t size) { snprintf(text, size, "none: a test"); }

#ifndef MODULE_WITHOUT_SYMBOL
const CudaModule bifocal_cuda_module = {.version = MODULE_VERSION,
                                        .backend_size = MODULE_SIZE,
                                        .count = count,
                                        .open = open_backend,
                                        .describe = describe,
                                        .describe_links = describe_links};
#else
int no_such_symbol_here(void);
int no_such_symbol_here(void) {
    describe(0, NULL, 0, NULL, 0);
    describe_links(NULL, 0);
    return count(NULL) + (open_backend(NULL, NULL, NULL) != NULL);
}
#endif
