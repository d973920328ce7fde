/* Device buffers that come and go with a step's buckets, kept for the next one: gathered parameters, gradients that are
 * not reduced yet. Not thread-safe. */
#pragma once
#include "kernels/backend.h"

typedef struct Buffers Buffers;

Buffers *buffers_new(Backend *);             // the backend is borrowed
void buffers_free(Buffers *);                // with all that was taken; NULL is allowed
void *buffers_take(Buffers *, size_t bytes); // aborts where there is no memory left; NULL for no bytes; not zeroed
void buffers_give(Buffers *, void *);        // one that was taken; NULL is allowed
void buffers_adopt(Buffers *, void *, size_t bytes); // counts as taken from now on, and stays the caller's in the end
size_t buffers_bytes(const Buffers *);               // of all but adopted ones; never becomes less
