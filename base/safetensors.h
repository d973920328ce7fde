/* safetensors files: named arrays (huggingface/safetensors). The reader maps the file and refuses everything that is
 * not exactly the format; the writer sorts by descending element size, then name, writes aside, syncs and renames, and
 * puts checksums into __metadata__, which the reader verifies on request: each tensor's XXH3-64 ("xxh3/NAME") and the
 * header's own ("xxh3"). */
#pragma once
#include "arena.h"
#include "error.h"
#include "files.h"

enum { SAFETENSORS_MAX_RANK = 8 };

typedef struct SafeTensor {
    const char *name;
    const char *dtype;   // "F32", "BF16", "I64", ... as in the file
    int         rank;
    int64_t     shape[SAFETENSORS_MAX_RANK];
    const void *data;    // reader: inside the map; not aligned
    int64_t     bytes;
} SafeTensor;

typedef struct SafeTensors {
    MappedFile  file;
    SafeTensor *tensors; // sorted by name
    int         count;
    Arena      *memory;
    char      **metadata; // key, value, key, value, ..., sorted by key
    int         metadata_count; // pairs
} SafeTensors;

bool safetensors_open(SafeTensors *, const char *path, Error *);
const SafeTensor *safetensors_find(const SafeTensors *, const char *name); // NULL where absent
const char *safetensors_metadata(const SafeTensors *, const char *key);   // NULL where absent
bool safetensors_verify(const SafeTensors *, const char *path, Error *);  // checksums, where the file has them
void safetensors_close(SafeTensors *);                                    // zeroed structs are allowed

// A file that belongs to a safetensors file, such as the model's description beside its weights: the metadata holds its
// hash under its name, so that damage to it, or one of another checkpoint, is found.
enum { SAFETENSORS_HASH = 17 }; // bytes of a hash as text
bool safetensors_hash_file(const char *path, char hash[SAFETENSORS_HASH], Error *);
void safetensors_hash_text(const char *text, size_t size, char hash[SAFETENSORS_HASH]); // of a file that will hold it
// False where `path` is not the file that was hashed. Files of other writers say nothing of it: then true.
bool safetensors_check_file(const SafeTensors *, const char *path, Error *);

// metadata: pairs key, value; "format": "pt" is always added. Tensors may come in any order.
bool safetensors_write(const char *path, const SafeTensor *tensors, int count, const char *const *metadata, int pairs,
                       Error *);
int64_t safetensors_dtype_size(const char *dtype); // bytes, or 0 where unknown
