/* Attention masks as ranges of keys, as the data pipeline makes them from its segments: (B, T, 2) I32 with [first, end)
 * for each query. Host arrays; upload with tape_constant. */
#pragma once
#include <stdint.h>

void mask_causal(int32_t *range, int64_t batch, int64_t queries, int64_t keys);
void mask_full(int32_t *range, int64_t batch, int64_t queries, int64_t keys);
// causal, but the first prefix[b] see each other
void mask_prefix(int32_t *range, int64_t batch, int64_t length, const int32_t *prefix);
void mask_lengths(int32_t *range, int64_t batch, int64_t queries, int64_t keys, const int32_t *lengths);
// document[b, t]: number of the document of each position, in order of appearance; causal within it
void mask_documents(int32_t *range, int64_t batch, int64_t length, const int32_t *document);
