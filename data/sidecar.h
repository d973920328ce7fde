/* The sidecar of a shard, NAME.bfx: where each member lies, its checksum, and what a loader asks of each sample, so
 * that any sample is one read away. The layout is in docs/formats.md; every bit of the file is covered by a check. */
#pragma once
#include "base/buffer.h"
#include "base/error.h"
#include "data/digest.h"
#include <stdint.h>

typedef struct SidecarMember {
    uint64_t offset, length; // of the data in the tar, bytes
    uint32_t crc;            // CRC-32C of the data
    uint32_t name;           // offset in the names
    uint16_t kind;           // MemberKind
    uint16_t flags;          // 0
    uint32_t sample;         // which sample of the shard it belongs to
} SidecarMember;

typedef struct SidecarSample {
    uint64_t key_hash;        // XXH3-64 of the key
    uint64_t perceptual_hash; // 0: not computed
    uint32_t first_member;
    uint32_t pair_crc;       // CRC-32C over the first image and then the first text: one number for the pairing
    uint32_t width, height;  // of the first image, upright; 0 where there is none
    uint32_t tokens;         // 0: not counted
    uint16_t members, flags; // flags 0
    uint64_t reserved;       // 0
} SidecarSample;

typedef struct Sidecar {
    uint64_t tar_size;
    Hash128 tar_hash;
    uint32_t sample_count, member_count, names_size;
    const SidecarSample *samples;
    const SidecarMember *members;
    const char *names; // zero-terminated, one after the other
    Buffer file;       // what the pointers point into, where it was read
} Sidecar;

void sidecar_encode(const Sidecar *, Buffer *out); // out is cleared first
// Takes the bytes over (also where it fails, `bytes` is empty afterwards). `name` is for messages.
bool sidecar_decode(Sidecar *, Buffer *bytes, const char *name, Error *);
bool sidecar_read(Sidecar *, const char *path, Error *);
void sidecar_free(Sidecar *); // zeroed structs are allowed

const char *sidecar_name(const Sidecar *, uint32_t member);
// A key is [A-Za-z0-9_-]{1,200}; a member's name is its key, a dot and an extension. 0 where it is not so.
int key_length(const char *name);
