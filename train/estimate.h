/* What training a large text transformer takes, by closed formulas alone: parameters, FLOP, time, bytes, money. P
 * parameters, L layers, h wide, vocabulary V, rows of s tokens, batch B. Narayanan et al. 2021; Korthikanti et al.
 * 2022; Rajbhandari et al. 2020. What a config of this program takes is planned from its shapes instead (plan.h). */
#pragma once
#include "kernels/nn/block.h"

typedef struct TextSizes {
    double layers, width, vocabulary, context;
} TextSizes;

double estimate_parameters(const TextSizes *); // 12 L h^2 (1 + 13/(12 h) + (V + s)/(12 L h))

// FLOP of one iteration on a batch of so many rows, attention counted whole. What the model takes (for MFU), whatever
// is computed again: 72 B L s h^2 (1 + s/(6 h) + V/(12 L h)).
double estimate_model_flop(const TextSizes *, double batch);
// And what the hardware does (for HFU): selective, attention again: s/(3 h) in place of s/(6 h); full, every layer
// again: 96 B L s h^2 (1 + s/(6 h) + V/(16 L h)).
double estimate_hardware_flop(const TextSizes *, double batch, Recompute);

// Seconds of a training: k P T / (n X) for T tokens on n devices that do X FLOP/s each; k is 6, with full
// recomputation 8.
double estimate_seconds(double parameters, double tokens, Recompute, double devices, double flops);

// Bytes a parameter of a data rank among `ranks`: 16-bit values and gradients, f32 masters and Adam's moments.
// ZeRO 0: 16; 1: 4 + 12/N; 2: 2 + 14/N; 3: 16/N.
double estimate_zero_bytes(int stage, double ranks);
// Bytes sent in a step beside those of stage 0: 1; 1.5 at stage 3, which gathers values once more.
double estimate_zero_traffic(int stage);
// Bytes of all states: 16 a trained parameter, 4 where masters and moments are kept elsewhere; 2 a frozen one.
double estimate_state_bytes(double trained, double frozen, bool offloaded);
