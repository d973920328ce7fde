/* Between the writer and the reader of safetensors files: the header's own checksum. The header starts with
 * SAFETENSORS_HEADER_START, then 16 hexadecimal digits: the XXH3-64 of the header with these digits as zeros. It covers
 * what the tensors' checksums ("xxh3/NAME") do not: names, shapes, and the other metadata. */
#pragma once
#include "buffer.h"
#include <stdint.h>

#define SAFETENSORS_HEADER_START "{\"__metadata__\":{\"xxh3\":\""
enum { SAFETENSORS_CHECKSUM_DIGITS = 16 };

void safetensors_hex(uint64_t hash, char out[SAFETENSORS_CHECKSUM_DIGITS + 1]);
// Of a header that starts with SAFETENSORS_HEADER_START and the digits.
uint64_t safetensors_header_hash(const char *header, size_t size);
