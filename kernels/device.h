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
    int    threads;    // of the CPU's arithmetic; 0: one per core
    int    local_rank; // this process's number among those of the run on its machine: GPU local_rank modulo their number
} DeviceOptions;

// The backend, or NULL and why: only DEVICE_CUDA is ever refused. AUTO tells the log why it takes the CPU.
Backend *device_backend_new(const DeviceOptions *, Log *, Error *);

typedef struct DeviceSeat { // of a process
    int  gpu, gpus; // which GPU of those it sees; gpus 0: none is used
    char name[128]; // "NVIDIA H100 80GB HBM3"
    char pci[16];   // "0000:4e:00.0"; "" where that is not known
} DeviceSeat;
DeviceSeat device_seat(const DeviceOptions *); // that device_backend_new leads to; no GPU where it fails
