/* Checksums of files and members: CRC-32C (Castagnoli; iSCSI, RFC 3720), SHA-256, XXH3-128, and the Merkle root over
 * shards (the tree of RFC 6962: leaves and nodes are hashed with different first bytes). */
#pragma once
#include "base/error.h"
#include <stddef.h>
#include <stdint.h>

// `crc` is 0 to begin, or what the call before returned to go on.
uint32_t crc32c(uint32_t crc, const void *bytes, size_t count);
uint32_t crc32c_portable(uint32_t crc, const void *bytes, size_t count); // the same without SSE 4.2

enum { SHA256_SIZE = 32, SHA256_HEX = 64 };
typedef struct Hash128 {
    uint64_t low, high;
} Hash128; // XXH3-128

// SHA-256, and XXH3-128 where wanted, of a stream.
typedef struct Digest Digest;
Digest *digest_new(void);
void digest_free(Digest *); // NULL is allowed
void digest_update(Digest *, const void *bytes, size_t count);
void digest_sha256(Digest *, uint8_t out[SHA256_SIZE]); // ends the stream
Hash128 digest_xxh3(const Digest *);

void sha256(const void *bytes, size_t count, uint8_t out[SHA256_SIZE]);
bool digest_file(const char *path, Digest *, int64_t *size, Error *); // resets, then reads the whole file
void hex_encode(const uint8_t *bytes, size_t count, char *out);       // 2 * count digits and a zero
bool hex_decode(const char *text, uint8_t *out, size_t count);        // false where `text` is not 2 * count digits

// leaves: (count, 32), already hashed with merkle_leaf. count >= 1.
void merkle_leaf(const uint8_t tar[SHA256_SIZE], const uint8_t sidecar[SHA256_SIZE], uint8_t out[SHA256_SIZE]);
void merkle_root(const uint8_t (*leaves)[SHA256_SIZE], size_t count, uint8_t out[SHA256_SIZE]);
