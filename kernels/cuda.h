/* The CUDA backend, seen from a program that may run where there is no CUDA: it lies in a module of its own,
 * libbifocal_cuda.so, which is opened at run time. Nothing here needs CUDA's headers or libraries. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "kernels/backend.h"

typedef struct CudaOptions {
    int  device;      // number of the GPU among those that are visible
    bool synchronous; // wait behind every kernel, so that a fault names the operator it happened in; BIFOCAL_CUDA_SYNC=1 too
} CudaOptions;

// A backend on a GPU, or NULL and why: no module was built, it lacks a library, no driver, no GPU, one too old. The log
// (may be NULL) is told what was found; it is borrowed for the life of the backend, for what a fault says.
Backend *cuda_backend_new(const CudaOptions *, Log *, Error *);
// How many GPUs there are; < 0 and why where that cannot be known.
int cuda_count(Error *);
// A GPU's name and where it stands on the machine's PCI bus ("0000:4e:00.0"); "" where that is not known.
void cuda_describe(int device, char *name, size_t name_size, char *pci, size_t pci_size);
// NCCL, which moves what several GPUs exchange: "2.28.9, built for CUDA 13.0", or why there is none.
void cuda_describe_links(char *text, size_t size);
// Whether the module lies where cuda_backend_new looks for it: the path that BIFOCAL_CUDA_MODULE names, else beside the
// program, else in ../lib beside its folder.
bool cuda_module_built(void);

// ---- between the program and the module ----

typedef struct CudaModule {
    const char *version;      // of the program it was built with, and
    size_t      backend_size; // its sizeof(Backend): others are refused
    int (*count)(Error *);
    Backend *(*open)(const CudaOptions *, Log *, Error *);
    void (*describe)(int device, char *name, size_t name_size, char *pci, size_t pci_size);
    void (*describe_links)(char *text, size_t size);
} CudaModule;
#define CUDA_MODULE_SYMBOL "bifocal_cuda_module" // a CudaModule
