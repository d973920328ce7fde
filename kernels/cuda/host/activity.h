/* What a GPU did, as its tools note it (kernels, copies, fills, in its own nanoseconds), turned into slices of the
 * host's clock. Knows neither CUDA nor its tools: whoever has such records hands them over. */
#pragma once
#include "kernels/backend.h"

typedef enum ActivityKind { ACTIVITY_KERNEL, ACTIVITY_COPY, ACTIVITY_FILL } ActivityKind;
typedef enum CopyWay { COPY_OTHER, COPY_TO_DEVICE, COPY_TO_HOST, COPY_ON_DEVICE } CopyWay;

typedef struct Activity {
    ActivityKind kind;
    const char *name;    // of a kernel, as the linker knows it; copied
    CopyWay way;         // of a copy
    uint64_t bytes;      // of a copy or a fill
    uint32_t stream;     // its number, whatever it is
    uint64_t begin, end; // nanoseconds of the device's clock
} Activity;

typedef struct ClockPair { // one moment
    uint64_t device;       // nanoseconds
    double host;           // seconds
} ClockPair;

typedef struct Activities Activities;
enum { MOST_ACTIVITIES = 1 << 20 }; // more are counted and left out

Activities *activities_new(void);
void activities_free(Activities *); // NULL is allowed
void activities_add(Activities *, const Activity *);
int64_t activities_left_out(const Activities *);
// Hands over all of them in the order of their beginnings, streams numbered from 0 as they come, by a clock that went
// evenly between the two pairs; then there are none.
void activities_tell(Activities *, ClockPair first, ClockPair last, void *context,
                     void (*slice)(void *context, const DeviceSlice *));
// A short name: a kernel's own without its namespaces, with the name of its first template argument if that is a type
// of ours ("map_kernel Gelu"); "copy to device, 4.0 MiB".
void activity_name(const Activity *, char name[64]);
