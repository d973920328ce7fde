/* Memory of a step: blocks that are taken and given back in any order, out of large chunks. Neighbours that are free
 * become one; a block goes where it fits best below what is held of the chunks, else behind that. Where a block lies
 * depends on the sequence of calls alone, not on where the chunks are: the same step gets the same addresses, and once
 * all is given back a pool is as it was with its chunks empty. The memory itself, of a device perhaps, is never touched.
 * One thread at a time. */
#pragma once
#include "base/arena.h"

typedef struct Pool Pool;

Pool   *pool_new(ArenaSource, size_t first_chunk);         // bytes; nothing is allocated yet
void    pool_free(Pool *);                                 // NULL is allowed
void   *pool_take(Pool *, size_t bytes);                   // aligned to 64 bytes; never NULL: aborts where none is left
void    pool_give(Pool *, void *block, size_t bytes);      // bytes as asked for when it was taken
size_t  pool_held(const Pool *);                           // bytes of blocks that are taken
size_t  pool_peak(const Pool *);                           // bytes, from each chunk's start to the farthest end of a block ever
int64_t pool_system_allocations(const Pool *);             // how often the source was asked for a chunk or more of one
