/* dataset.json: what the data is. It is sealed by a SHA-256 of itself, so that no bit of it changes unnoticed; the
 * fields are in docs/formats.md. */
#pragma once
#include "data/shard_write.h"
#include <jansson.h>

#define MANIFEST_NAME   "dataset.json"
#define MANIFEST_FORMAT "bifocal dataset"
enum { MANIFEST_VERSION = 1 };

typedef struct Manifest {
    json_t *json; // owned
    ShardInfo *shards;
    int shard_count;
    int64_t samples;
    char root[SHA256_HEX + 1]; // Merkle root over the shards
} Manifest;

// Reads and checks folder/dataset.json: seal, fields, root. What is not a dataset is told with what to do.
bool manifest_read(Manifest *, const char *folder, Error *);
void manifest_free(Manifest *); // zeroed structs are allowed

json_t *manifest_shards_json(const ShardInfo *, int count);
void manifest_root(const ShardInfo *, int count, char root[SHA256_HEX + 1]); // count >= 1
// Adds the seal as the last field and gives the file's bytes.
void manifest_seal(json_t *, Buffer *out);
