/* What a run takes on a GPU: its own model, optimizer and step over a backend that computes nothing and holds memory as
 * a GPU does (kernels/dry_gpu.h), on batches of the run's shapes. Of a rank without a pipeline; stages of one are
 * planned by plan_pipeline.h. */
#pragma once
#include "base/buffer.h"
#include "kernels/dry.h"
#include "kernels/gpus.h"
#include "train/layout.h"

typedef struct DeviceMemory { // bytes
    double values;            // parameters as operators read them, and f32 masters
    double gradients, moments;
    double buckets;     // of gradients and values on their way between ranks
    double activations; // of a piece, with their gradients: the most at once
    double validation;  // beside them, of a piece whose losses alone are wanted; 0: none is held out
    double sent;        // pictures, text and losses on their way from and to the host
    double scratch;     // work space of kernels: logits, sums
    double products;    // work space of matrix products
    double host;        // pinned memory of the host, for states that are offloaded; in nothing else
    double tensors;     // all of these, as the run's own memory comes to hold them
    double context;     // CUDA's own and its libraries': DeviceLimit.context
    double seconds;     // beside memory: of a step's kernels one after another, modelled (kernel_costs.h)
    bool measured;      // likewise
    bool fits;          // within the limit; true where there is none
} DeviceMemory;
double device_memory_total(const DeviceMemory *);

typedef struct DeviceLimit { // bytes of a GPU
    double bytes;            // that a process may take, with what CUDA and its libraries take; 0: no limit
    double context;          // of them: the latter
    bool measured;           // on a GPU at hand (device_use.h), with what other processes take; else as it commonly is
    const GpuKind *gpu;      // whose speed is modelled; NULL: an H100's
} DeviceLimit;
DeviceLimit device_limit(double bytes); // nothing is at hand

// False where the config is wrong.
bool device_memory_plan(const TrainConfig *, const Layout *, DeviceLimit, DeviceMemory *, Error *);
// In lines, under a heading that names the device and what it has (limit 0: not known).
void device_memory_write(const DeviceMemory *, const char *device, double limit, Buffer *out);

typedef struct RehearsedStep { // of a rank
    double flop;               // of its share of the model
    double tokens, images;     // positions of text, pictures that are looked at or painted
} RehearsedStep;
// A whole step of a rank of a GPU, all pieces, products with what can be part of them; `seen` gets the backend, whose
// kernels were charged by the rates.
bool device_step_rehearse(const TrainConfig *, const Layout *, const DryRates *, RehearsedStep *,
                          void (*seen)(void *context, const Backend *), void *context, Error *);
