/* Masked autoencoder (He et al. 2021): the trunk sees a quarter of the patches, a small decoder sees all positions and
 * paints the missing ones. */
#pragma once
#include "vision/vit.h"

typedef struct MaeConfig {
    double mask_ratio;
    int64_t decoder_width, decoder_layers, decoder_heads;
    bool normalize; // targets by their own patch's mean and variance
} MaeConfig;

typedef struct Mae {
    MaeConfig config;
    Linear embed;       // (Cd, C)
    Tensor *mask_token; // (Cd)
    Tensor *positions;  // (N + 1, Cd), fixed sin-cos
    Block *blocks;
    Norm norm;
    Linear pixels; // (3 P P, Cd)
    const Parallel *parallel;
} Mae;

int64_t mae_kept(const MaeConfig *, const VitConfig *); // patches that the trunk sees: floor(N (1 - ratio))
// The first `kept` of a random order are seen: drawn from (seed, image_key) alone. keep (kept), masked (N - kept).
void mae_mask(uint64_t seed, uint64_t image_key, int64_t patches, int64_t kept, int32_t *keep, int32_t *masked);
const char *mae_check(const MaeConfig *, const VitConfig *, Arena *); // NULL, or what does not fit and what would
// The decoder's layers divide over as many tensor ranks as divide this.
int64_t mae_common(const MaeConfig *, const VitConfig *);
bool mae_declare(Mae *, Parameters *, Arena *, const char *prefix, const MaeConfig *, const VitConfig *, Error *);
// images (B, 3, S, S); keep (B, kept), masked (B, N - kept) host indices. Returns the sum over masked patches, (1) F32.
Tensor *mae_loss(Tape *, const Mae *, const Vit *, Tensor *images, const int32_t *keep, const int32_t *masked,
                 const BlockContext *);
// The decoder's pixels of the masked patches, (B (N - kept), 3 P P) flattened (y, x, c), in the order of `masked`.
Tensor *mae_predict(Tape *, const Mae *, const Vit *, Tensor *images, const int32_t *keep, const int32_t *masked,
                    const BlockContext *);
// In parts, around the decoder's blocks (block_forward): what the trunk saw, (B, kept (+1), C), -> (B, N (+1), Cd) with
// mask tokens and positions (the context notes how rows are shared out); from there the pixels of the masked patches;
// and their error, (1) F32.
Tensor *mae_enter(Tape *, const Mae *, const Vit *, Tensor *seen, const int32_t *keep, BlockContext *);
Tensor *mae_leave(Tape *, const Mae *, const Vit *, Residual, const int32_t *masked, const BlockContext *);
Tensor *mae_error(Tape *, const Mae *, const Vit *, Tensor *painted, Tensor *images, const int32_t *masked);
double mae_flop(const MaeConfig *, const VitConfig *, double images); // of forward
// Elements on a rank, for an estimate of memory: of the decoder's matrices; of what a forward pass, the trunk's in it,
// leaves on the tape.
double mae_weights(const MaeConfig *, const VitConfig *, const ParallelSizes *);
double mae_activations(const MaeConfig *, const VitConfig *, double images, Recompute, const ParallelSizes *);
