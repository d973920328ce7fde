/* A dataset: a folder of shards (POSIX tar, readable by WebDataset) with sidecars and dataset.json. Reading side; the
 * formats are in docs/formats.md, the writing side is dataset_write.h. Shards are read, never mapped: one that shrinks
 * or vanishes while in use is an error like any other damage. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include "base/log.h"
#include <stdint.h>

typedef struct Dataset Dataset;

typedef enum { MEMBER_IMAGE, MEMBER_TEXT, MEMBER_JSON, MEMBER_OTHER } MemberKind;
enum { SAMPLE_MEMBERS = 8, KEY_SIZE = 204 };

// name: in the tar, "000000123.1.jpg". bytes: followed by a zero, so that text can be used as a C string.
typedef struct Member {
    MemberKind kind;
    const char *name;
    const uint8_t *bytes;
    int64_t size;
    uint32_t crc;
} Member;

typedef struct Sample {
    const char *shard;              // "shard-000003.tar"; valid while the dataset is open
    char key[KEY_SIZE];             // "000000123"
    Member members[SAMPLE_MEMBERS]; // their names too; their bytes lie in the caller's buffer
    int member_count;
    uint64_t number;   // global number in the dataset, from 0
    int width, height; // of the first image, upright; 0 where there is none
} Sample;

Dataset *dataset_open(const char *path, Error *); // checks sizes, sidecars and their hashes; not the shards' bytes
void dataset_close(Dataset *);                    // NULL is allowed
int64_t dataset_samples(const Dataset *);
const char *dataset_root(const Dataset *); // Merkle root, hex
const char *dataset_path(const Dataset *);
// Reads a sample and checks its CRCs (damage: error). Its members' bytes lie in `bytes`, which is the caller's and is
// reused from call to call: zero-initialise it once, buffer_free it at the end. Thread-safe with a buffer a thread.
bool dataset_sample(const Dataset *, int64_t number, Sample *, Buffer *bytes, Error *);
// How many pictures the sample has, as its sidecar says: nothing is read.
int dataset_images(const Dataset *, int64_t number);
const Member *sample_member(const Sample *, MemberKind, int index); // NULL where there is none
// Everything: tar structure, hashes, CRCs. Findings go to the log; returns their number, or -1 where it cannot be read.
int64_t dataset_verify(const char *path, Log *, Error *);
