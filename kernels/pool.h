/* Free blocks of a step's memory, to be used again within the step. Best fit with splitting, no search that depends on
 * anything but the sequence of calls: the same step gets the same addresses. Blocks belong to an arena; the pool only
 * remembers which are free. */
#pragma once
#include <stddef.h>

typedef struct Pool Pool;

Pool  *pool_new(void);
void   pool_free(Pool *);                               // NULL is allowed
void   pool_clear(Pool *);                              // forgets all blocks
size_t pool_round(size_t bytes);                        // what a block of `bytes` takes
void  *pool_take(Pool *, size_t bytes);                 // the smallest free block that fits, or NULL
void   pool_give(Pool *, void *block, size_t bytes);    // bytes as asked for when it was taken
