/* Remembers what was found out once for a shape: the kernel that a library's heuristic chose, a plan that was built.
 * Keys are plain bytes without padding, values fixed-size records; open addressing, nothing is ever forgotten. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct ShapeCache ShapeCache;

ShapeCache *shape_cache_new(size_t key_bytes, size_t value_bytes);
// drop (may be NULL) is called for each value.
void shape_cache_free(ShapeCache *, void (*drop)(void *value)); // NULL is allowed
// The value of a key, zeroed where it is new (*found tells); valid until the next call with a new key.
void *shape_cache_get(ShapeCache *, const void *key, bool *found);
int64_t shape_cache_count(const ShapeCache *);
