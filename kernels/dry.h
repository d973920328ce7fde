/* A backend that does nothing: its memory is address space that is never touched, its kernels return at once, what is
 * read from it is zeros. A forward and backward pass of the real code over it gives the shapes, the costs (tape_cost) and
 * the peak of memory (tape_memory_peak) of a model that is far too large for this machine, in milliseconds, and they are
 * those of the same pass on a backend that computes: where blocks lie never depends on what is in them. */
#pragma once
#include "kernels/backend.h"

Backend *dry_backend_new(void); // never fails; end with backend_free

// A clock that kernels move on by what they would take: the larger of FLOP over `flops` a second and bytes, read and
// written once, over `bandwidth` a second. It stands still until rates are set, which puts it to 0.
void dry_set_rates(Backend *, double flops, double bandwidth);
double dry_seconds(const Backend *);
// How often a kernel of backend.h was called, by its name ("add"); NULL: all of them together.
int64_t dry_calls(const Backend *, const char *kernel);
