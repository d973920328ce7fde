/* Numbers for names: see philox.h. */
#include "base/philox.h"
#include <xxhash.h>

uint64_t hash_u64(const void *bytes, uint64_t count) { return XXH3_64bits(bytes, (size_t)count); }
