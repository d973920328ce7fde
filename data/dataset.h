/* A dataset: a folder of shards (POSIX tar, readable by WebDataset) with sidecars and dataset.json. Reading side. */
#pragma once
#include "base/arena.h"
#include "base/error.h"
#include "base/log.h"
#include <stdint.h>

typedef struct Dataset Dataset;

typedef enum { MEMBER_IMAGE, MEMBER_TEXT, MEMBER_JSON, MEMBER_OTHER } MemberKind;
typedef struct Member { MemberKind kind; const char *name; const uint8_t *bytes; int64_t size; uint32_t crc; } Member;

// One sample in a mapped shard: valid while the dataset is open.
typedef struct Sample {
    const char *shard, *key; // "shard-000003.tar", "000123"
    Member      members[8];
    int         member_count;
    uint64_t    number;      // global number in the dataset, from 0
    int         width, height; // of the first image, 0 where there is none
} Sample;

Dataset *dataset_open(const char *path, Error *); // checks sizes, sidecars and their hashes; not the shards' bytes
void     dataset_close(Dataset *);                // NULL is allowed
int64_t  dataset_samples(const Dataset *);
const char *dataset_root(const Dataset *);        // Merkle root, hex
const char *dataset_path(const Dataset *);
int      dataset_shards(const Dataset *);
int64_t  dataset_shard_first(const Dataset *, int shard); // number of its first sample; shard == dataset_shards: the total
bool     dataset_sample(const Dataset *, int64_t number, Sample *, Error *); // thread-safe; checks CRCs (damage: error)
const Member *sample_member(const Sample *, MemberKind, int index); // NULL where there is none
// Everything: tar structure, hashes, CRCs. Findings go to the log; returns their number, or -1 where it cannot be read.
int64_t  dataset_verify(const char *path, Log *, Error *);
