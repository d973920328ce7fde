/* Finds and opens the CUDA module: see cuda.h. It stays open until the process ends, since CUDA's libraries do not like
 * to be closed. */
#include "kernels/cuda.h"
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char MODULE[] = "libbifocal_cuda.so";

// Writes the folder of the running program, without a slash at its end; false where it is not known.
static bool program_folder(char *folder, size_t size) {
    ssize_t length = readlink("/proc/self/exe", folder, size - 1);
    if (length <= 0) return false;
    folder[length] = 0;
    char *slash = strrchr(folder, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

// The module's path; false where there is none.
static bool find_module(char *path, size_t size) {
    const char *named = getenv("BIFOCAL_CUDA_MODULE");
    if (named && *named) {
        snprintf(path, size, "%s", named);
        return true; // it was asked for: what is wrong with it is said when it is opened
    }
    char folder[PATH_MAX / 2];
    if (!program_folder(folder, sizeof folder)) return false;
    static const char *const places[] = {"", "/../lib"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int length = snprintf(path, size, "%s%s/%s", folder, places[i], MODULE);
        if (length > 0 && (size_t)length < size && !access(path, R_OK)) return true;
    }
    return false;
}

bool cuda_module_built(void) {
    char path[PATH_MAX];
    return find_module(path, sizeof path);
}

static const CudaModule *open_module(Error *error) {
    char path[PATH_MAX];
    if (!find_module(path, sizeof path)) {
        error_set(error, ERROR_USAGE,
                  "this program was built without CUDA (there is no %s beside it); build it where nvcc is found",
                  MODULE);
        return NULL;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        error_set(error, ERROR_USAGE, "cannot open the CUDA module: %s", dlerror());
        return NULL;
    }
    const CudaModule *module = dlsym(library, CUDA_MODULE_SYMBOL);
    if (!module) {
        error_set(error, ERROR_USAGE, "%s is no CUDA module of this program: it has no " CUDA_MODULE_SYMBOL, path);
    } else if (strcmp(module->version, BIFOCAL_VERSION) != 0 || module->backend_size != sizeof(Backend)) {
        error_set(error, ERROR_USAGE, "%s belongs to another build (version %s, this is %s): build both together", path,
                  module->version, BIFOCAL_VERSION);
        module = NULL;
    }
    if (!module) dlclose(library);
    return module;
}

int cuda_count(Error *error) {
    const CudaModule *module = open_module(error);
    return module ? module->count(error) : -1;
}

Backend *cuda_backend_new(const CudaOptions *options, Log *log, Error *error) {
    const CudaModule *module = open_module(error);
    if (!module) return NULL;
    CudaOptions chosen = *options;
    const char *wait = getenv("BIFOCAL_CUDA_SYNC");
    if (wait && *wait && strcmp(wait, "0") != 0) chosen.synchronous = true;
    return module->open(&chosen, log, error);
}

void cuda_describe(int device, char *name, size_t name_size, char *pci, size_t pci_size) {
    Error unknown = {0};
    const CudaModule *module = open_module(&unknown);
    snprintf(name, name_size, "%s", "");
    snprintf(pci, pci_size, "%s", "");
    if (module) module->describe(device, name, name_size, pci, pci_size);
}

void cuda_describe_links(char *text, size_t size) {
    Error error = {0};
    const CudaModule *module = open_module(&error);
    if (module)
        module->describe_links(text, size);
    else
        snprintf(text, size, "none: %s", error.message);
}
