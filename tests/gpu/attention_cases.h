/* Attention as models ask for it: shapes and masks of GPT-2, grouped heads, ViT, MAE, a captioner's prefix, packed
 * documents and generation, in bf16, for checks and figures on a GPU. */
#pragma once
#include "kernels/bench_ops.h"

// Each against the CPU backend, one batch element and few heads of it: outputs and gradients off the f32 result by at
// most twice what the CPU's bf16 is, and the same bits in three runs.
int attention_cases(void); // how many
const char *attention_case_name(int which);
bool attention_case_holds(Backend *cpu, Backend *gpu, int which);

// Forward and backward of each, as rows named attention/CASE.
void attention_bench(Backend *, const BenchOps *);
