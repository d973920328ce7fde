/* Which kernel was fastest for a product, kept in a small file from run to run, so that a run that goes on has the
 * kernels, and so the bits, that it had. One file for each GPU model and library version; several processes share it:
 * what one has settled is what the others take. A file that is damaged or belongs to others is ignored, which is said
 * once. The layout of the file: a line of magic, a line that says for whom, then one line for each product. */
#pragma once
#include "base/log.h"
#include "kernels/cuda/host/product_layout.h"

enum { PRODUCT_ALGORITHM = 8 }; // words of the library's description of a kernel

typedef struct ProductChoice {
    uint64_t algorithm[PRODUCT_ALGORITHM]; // opaque; means something to the same version of the library alone
    uint64_t way;                          // the caller's: how the product is put together
} ProductChoice;

typedef struct ProductMemory ProductMemory;

// path NULL: remembers for the life of the process alone. whose: GPU and version, one line. The log may be NULL.
ProductMemory *product_memory_open(const char *path, const char *whose, Log *);
void product_memory_close(ProductMemory *); // NULL is allowed
bool product_memory_find(const ProductMemory *, const ProductKey *, ProductChoice *);
// Keeps *choice and writes the file, unless another process has settled the same product: then *choice becomes theirs.
void product_memory_settle(ProductMemory *, const ProductKey *, ProductChoice *);
int64_t product_memory_count(const ProductMemory *);
// $XDG_CACHE_HOME/bifocal/NAME or ~/.cache/bifocal/NAME, whose folder is made; false: there is no such place. Letters
// of `name` that do not suit a file become '-'.
bool product_memory_path(char *out, int size, const char *name);
