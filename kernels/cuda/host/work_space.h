/* What the CUDA backend takes on the GPU beside the tensors it is asked for: sizes by which its own files allocate, and by
 * which a dry run (kernels/dry_gpu.h) foretells what they will. In bytes where nothing else is said; no CUDA is needed. */
#pragma once
#include "kernels/tensor.h"
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum {
    WORK_GRANULARITY = 2 << 20, // of backed memory: what cuMemGetAllocationGranularity recommends on GPUs since Ampere
    WORK_SCRATCH_FIRST = 32 << 20,
    WORK_SCRATCH_ALIGNMENT = 256,
    WORK_BLOCK_FIRST = 1 << 20,  // of a block of the backend's own that may grow
    WORK_SLAB_ALIGNMENT = 256,   // of an upload in a sequence
    WORK_PRODUCTS = 64 << 20,    // cuBLASLt's work space
    WORK_LOGITS = 512 << 20,     // logits that cross-entropy holds at once, at most
    WORK_LOGITS_ROWS_UNIT = 128, // rows of a chunk of them: a multiple, where there are so many
    WORK_LOGITS_PADDING = 128,   // words of a row of them: a multiple
    WORK_SDPA = 256 << 20,       // of a plan of cuDNN's for attention, at most
    WORK_SORT_TILE = 2048,       // items that one block sorts, by
    WORK_SORT_DIGITS = 256,      // values of a digit
    WORK_SCATTER_CHUNK = 16,     // sorted rows that one block of the scatter adds up
};

typedef struct LogitsChunk {
    int64_t rows, stride; // of a chunk; words from one row to the next
    size_t  bytes;
} LogitsChunk;
// Of n rows over the `words` that a rank holds (it may hold none).
LogitsChunk work_logits(int64_t n, int64_t words, Dtype);

size_t work_fp8(int64_t outer, int64_t k); // of a matrix rounded to fp8, one of the two of a product
size_t work_sort(int64_t rows);                   // of row numbers (row_sort.h)
size_t work_scatter(int64_t rows, int64_t width); // of sums by sorted rows: gradients of embeddings and gathers
// Of an attention backward pass over (B, T, S, H, K, D): own kernels take a number for each query and head, and the
// spans of tiles where the mask is by range. cuDNN, in its way that gives the same bits each time, takes a bf16 number for
// each pair of a query and a key, and dk and dv of every head where heads are grouped; up to WORK_SDPA: calls take as
// many elements of the batch as that holds (work_attention_slice), and where it does not hold one, ours runs.
int64_t work_attention_slice(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads,
                             int64_t head_size);
size_t work_attention_backward(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads,
                               int64_t head_size, bool cudnn);

#ifdef __cplusplus
}
#endif
