/* Writing a shard: the tar and its sidecar. Both are written aside and renamed; a shard that was not finished leaves
 * nothing. The bytes are a pure function of the samples. */
#pragma once
#include "data/dataset.h"
#include "data/digest.h"

typedef struct NewMember {
    MemberKind kind;
    const char *extension; // "jpg", "1.txt": the name is the key, a dot and this
    const void *bytes;     // borrowed
    size_t size;           // > 0
} NewMember;

typedef struct NewSample {
    const char *key;                   // [A-Za-z0-9_-]{1,200}
    NewMember members[SAMPLE_MEMBERS]; // images, then texts, then json
    int member_count;
    int width, height; // of the first image, upright
} NewSample;

typedef struct ShardInfo {      // what dataset.json keeps of a shard
    char path[32], sidecar[32]; // "shard-000000.tar", "shard-000000.bfx"
    int64_t bytes, samples;     // of the tar
    uint8_t sha256[SHA256_SIZE], sidecar_sha256[SHA256_SIZE];
} ShardInfo;

typedef struct ShardWriter ShardWriter;
ShardWriter *shard_create(const char *folder, int number, Error *); // number < 1,000,000
bool shard_add(ShardWriter *, const NewSample *, Error *);
int64_t shard_bytes(const ShardWriter *); // of the tar so far
// Frees the writer, also where it fails. dali_index: writes NAME.idx too (NVIDIA DALI, v1.2).
bool shard_finish(ShardWriter *, bool dali_index, ShardInfo *, Error *);
void shard_abandon(ShardWriter *); // leaves nothing behind; NULL is allowed
