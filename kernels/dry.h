/* A backend that does nothing: its memory is address space that is never touched, its kernels return at once, what is
 * read from it is zeros. A forward and backward pass of the real code over it gives the shapes, the costs (tape_cost) and
 * the peak of memory (tape_memory_peak) of a model that is far too large for this machine, in milliseconds, and they are
 * those of the same pass on a backend that computes: where blocks lie never depends on what is in them. */
#pragma once
#include "kernels/dry_lanes.h"

Backend *dry_backend_new(void); // never fails; end with backend_free

typedef struct DryRates { // of a device, a second
    double bf16, f32, fp8; // FLOP of products of these types
    double attention;      // FLOP of attention in bf16; 0: as products
    double bandwidth;      // bytes, read and written
    double launch;         // seconds between the end of one launch and the beginning of the next
} DryRates;

typedef struct DryKernel { // of backend.h: all its calls since the rates were set
    const char *name;
    bool    product;       // matrix products, attention
    int64_t calls, launches;
    double  flop, bytes;   // bytes: each array once for every call that reads or writes it
    double  work, gaps;    // seconds: work is the larger of FLOP and bytes by the rates, call by call
} DryKernel;

// A clock that kernels move on by what they would take. It stands still until rates are set, which puts all to 0.
void dry_set_rates(Backend *, const DryRates *);
double dry_seconds(const Backend *);
// What all would take if they ran beside one another at will: all FLOP or all bytes, whichever takes longer.
double dry_floor(const Backend *);
// Gives it lanes (at most once), whose clocks the rates put to 0 too.
void dry_open_lanes(Backend *);
DryLane dry_lane(const Backend *, int lane);
bool dry_kernel(const Backend *, int number, DryKernel *out); // false behind the last
// How often a kernel of backend.h was called, by its name ("add"); NULL: all of them together.
int64_t dry_calls(const Backend *, const char *kernel);
void dry_fuse(Backend *); // gives it the calls that do what others do apart
// For backends around this one: a call of the kernel by other bytes than its own; how many launches each of its calls is.
void dry_charge(Backend *, const char *kernel, double bytes);
void dry_set_launches(Backend *, const char *kernel, int launches);
