/* Device memory in regions: a stretch of addresses as large as the device's whole memory, of which only the front is
 * backed, piece by piece as it is asked for. An arena over such a region grows where it stands: one block whose
 * addresses never change, and nothing lost to chunks that were outgrown. (CUDA's virtual memory management; what it
 * does comes as functions, so that this file needs no CUDA and is tested without a GPU.) */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct RegionDriver {
    void *context;
    size_t granularity;                                               // bytes: pieces and reservations are multiples
    bool (*reserve)(void *context, size_t bytes, uintptr_t *address); // addresses without memory
    void (*unreserve)(void *context, uintptr_t address, size_t bytes);
    bool (*back)(void *context, uintptr_t address, size_t bytes, uint64_t *piece); // memory for them; false: none left
    void (*unback)(void *context, uintptr_t address, size_t bytes, uint64_t piece);
} RegionDriver;

typedef struct Regions Regions;

// most: bytes, how far a large region may ever grow. The driver is copied; its context is borrowed.
Regions *regions_new(const RegionDriver *, size_t most);
void regions_free(Regions *);                    // releases all; NULL is allowed
void *regions_allocate(Regions *, size_t bytes); // NULL where there is no memory left
// Makes the block, which has `bytes` as asked for so far, at least `more` bytes longer where it stands; false: it
// stays.
bool regions_extend(Regions *, void *memory, size_t bytes, size_t more);
void regions_release(Regions *, void *memory); // NULL is allowed
size_t regions_held(const Regions *);          // bytes backed, in all regions
size_t regions_growing(const Regions *);       // of them in regions that were ever extended

// What to tell a user whose request failed: what was wanted, what is there, what would fit. Returns buffer.
typedef struct MemoryState {
    size_t wanted, free, total; // bytes: of the request; of the device
    size_t held, growing;       // by this process; of it what grows with the batch
} MemoryState;
const char *regions_explain(char *buffer, size_t size, MemoryState);
