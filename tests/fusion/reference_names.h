/* What our parameters are called in the layouts of Hugging Face transformers, and how to put theirs together: several
 * of their tensors may be the rows of one of ours (queries, keys, values), and GPT-2's maps are stored [in, out]. */
#pragma once
#include "base/safetensors.h"
#include "kernels/tensor.h"

typedef struct NameRule {
    const char *ours;   // "text.blocks.#.qkv.weight": # is any layer number
    const char *theirs; // "layers.#.q.weight+layers.#.k.weight": rows one after the other
    bool transpose;     // theirs is [in, out]
} NameRule;

// Each ends with a rule whose `ours` is NULL.
extern const NameRule gpt2_names[], llama_names[], vit_names[], mae_names[], clip_names[];

// Reads what `rules` name for `tensor`, with `prefix` in front of every one of their names, into out (count elements).
// false where a name or a size does not fit.
bool reference_read(const SafeTensors *, const NameRule *rules, const char *prefix, const Tensor *tensor, float *out);
// Elements of one tensor of the file as f32 (F32 or BF16 there); false where absent or of another count.
bool reference_values(const SafeTensors *, const char *name, float *out, int64_t count);
