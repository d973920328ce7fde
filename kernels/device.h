/* Where the arithmetic runs, as a user names it. */
#pragma once
#include "base/error.h"
#include "base/log.h"
#include "kernels/backend.h"

typedef enum Device { DEVICE_CPU, DEVICE_CUDA, DEVICE_AUTO } Device;
#define DEVICE_CHOICES "cpu|cuda|auto" // in that order, for tables of keys and options
#define DEVICE_HELP    "where the arithmetic runs; auto: a GPU where there is one, else the CPU"

typedef struct DeviceOptions {
    Device device;
    int    threads;           // of the CPU's arithmetic; 0: one per core
    int    ranks, local_rank; // processes of the run, and this one's number on its host; 0, 0: alone
} DeviceOptions;

// The backend, or NULL and why: only DEVICE_CUDA is ever refused. AUTO tells the log why it takes the CPU.
Backend *device_backend_new(const DeviceOptions *, Log *, Error *);
