/* See digest.h. */
#include "data/digest.h"
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

// One byte of the reflected polynomial 0x82F63B78 by the table of nibbles: small, and only the fallback.
uint32_t crc32c_portable(uint32_t crc, const void *bytes, size_t count) {
    static const uint32_t nibble[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    const uint8_t *p = bytes;
    crc = ~crc;
    for (size_t i = 0; i < count; i++) {
        crc ^= p[i];
        crc = (crc >> 4) ^ nibble[crc & 15];
        crc = (crc >> 4) ^ nibble[crc & 15];
    }
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *bytes, size_t count) {
    const uint8_t *p = bytes;
    uint64_t c = ~crc;
    for (; count >= 8; count -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        c = _mm_crc32_u64(c, word);
    }
    uint32_t rest = (uint32_t)c;
    for (; count; count--) rest = _mm_crc32_u8(rest, *p++);
    return ~rest;
}
#endif

uint32_t crc32c(uint32_t crc, const void *bytes, size_t count) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42(crc, bytes, count);
#endif
    return crc32c_portable(crc, bytes, count);
}

struct Digest {
    EVP_MD_CTX *sha;
    XXH3_state_t *xxh;
};

static void reset(Digest *d) {
    check(EVP_DigestInit_ex(d->sha, EVP_sha256(), NULL) == 1);
    check(XXH3_128bits_reset(d->xxh) == XXH_OK);
}

Digest *digest_new(void) {
    Digest *d = calloc(1, sizeof *d);
    check(d);
    d->sha = EVP_MD_CTX_new();
    d->xxh = XXH3_createState();
    check(d->sha && d->xxh);
    reset(d);
    return d;
}

void digest_free(Digest *d) {
    if (!d) return;
    EVP_MD_CTX_free(d->sha);
    XXH3_freeState(d->xxh);
    free(d);
}

void digest_update(Digest *d, const void *bytes, size_t count) {
    if (!count) return;
    check(EVP_DigestUpdate(d->sha, bytes, count) == 1);
    check(XXH3_128bits_update(d->xxh, bytes, count) == XXH_OK);
}

void digest_sha256(Digest *d, uint8_t out[SHA256_SIZE]) { check(EVP_DigestFinal_ex(d->sha, out, NULL) == 1); }

Hash128 digest_xxh3(const Digest *d) {
    XXH128_hash_t h = XXH3_128bits_digest(d->xxh);
    return (Hash128){h.low64, h.high64};
}

void sha256(const void *bytes, size_t count, uint8_t out[SHA256_SIZE]) {
    check(EVP_Digest(bytes, count, out, NULL, EVP_sha256(), NULL) == 1);
}

bool digest_file(const char *path, Digest *d, int64_t *size, Error *error) {
    enum { CHUNK = 1 << 18 };
    reset(d);
    *size = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return error_set_errno(error, ERROR_FAILED, "%s: cannot open", path);
    char *chunk = malloc(CHUNK);
    ssize_t n;
    check(chunk);
    while ((n = read(file, chunk, CHUNK)) > 0) {
        digest_update(d, chunk, (size_t)n);
        *size += n;
    }
    if (n < 0) error_set_errno(error, ERROR_FAILED, "%s: cannot read at byte %lld", path, (long long)*size);
    free(chunk);
    close(file);
    return n == 0;
}

void hex_encode(const uint8_t *bytes, size_t count, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < count; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * count] = 0;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool hex_decode(const char *text, uint8_t *out, size_t count) {
    if (strlen(text) != 2 * count) return false;
    for (size_t i = 0; i < count; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static void hash_two(uint8_t first, const uint8_t *a, const uint8_t *b, uint8_t out[SHA256_SIZE]) {
    uint8_t text[1 + 2 * SHA256_SIZE];
    text[0] = first;
    memcpy(text + 1, a, SHA256_SIZE);
    memcpy(text + 1 + SHA256_SIZE, b, SHA256_SIZE);
    sha256(text, sizeof text, out);
}

void merkle_leaf(const uint8_t tar[SHA256_SIZE], const uint8_t sidecar[SHA256_SIZE], uint8_t out[SHA256_SIZE]) {
    hash_two(0, tar, sidecar, out);
}

void merkle_root(const uint8_t (*leaves)[SHA256_SIZE], size_t count, uint8_t out[SHA256_SIZE]) {
    check(count >= 1);
    if (count == 1) {
        memcpy(out, leaves[0], SHA256_SIZE);
        return;
    }
    size_t left = 1; // the largest power of two below count
    while (left * 2 < count) left *= 2;
    uint8_t a[SHA256_SIZE], b[SHA256_SIZE];
    merkle_root(leaves, left, a);
    merkle_root(leaves + left, count - left, b);
    hash_two(1, a, b, out);
}
