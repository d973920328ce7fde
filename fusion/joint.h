/* The joint model: one eye (a ViT trunk), one tongue (a text transformer), and the objectives that train them together,
 * each with a weight: lm, caption, contrastive, mae. A step's loss is the sum over objectives of weight x mean, each
 * mean over its own exact count in the whole batch. */
#pragma once
#include "base/config.h"
#include "base/trace.h"
#include "data/batch.h"
#include "fusion/pair_ring.h"
#include "text/transformer.h"
#include "vision/mae.h"
#include "vision/vit.h"

typedef enum { CONNECTOR_LINEAR, CONNECTOR_MLP } Connector;
typedef enum { CONTRASTIVE_SOFTMAX, CONTRASTIVE_SIGMOID } ContrastiveKind;

typedef struct JointConfig {
    bool has_vision; // false: text alone
    VitConfig vision;
    TextConfig text;
    MaeConfig mae;
    Connector connector; // image tokens into the text transformer's width
    ContrastiveKind contrastive;
    int64_t embedding; // width of the shared space of contrastive learning
    double weight[OBJECTIVES];
    double pixel_mean[3], pixel_std[3]; // of values in 0..1
    StringList freeze;                  // prefixes of parameter names: "vision", "text", "vision.blocks.0"
    bool fp8;                           // products of its blocks, in training, where it computes in bf16
    Recompute recompute;                // of its blocks, in training; not the model's own: no number depends on it
    int lanes; // of a GPU's work that its streams are spread over, at most (joint_units.h); 0: not yet chosen, 1. Likewise
    StringList
        recompute_units; // units whose blocks do so, or what they lie under: "vision.blocks.0", "text"; none: all
} JointConfig;

extern const ConfigSchema joint_schema; // keys "model.*" over JointConfig; train nests it in its own table
extern const char *const objective_weight_keys[OBJECTIVES]; // "model.weight.lm", ...

typedef struct Joint Joint;
// Declares and draws all parameters. The backend and the groups of Parallel (NULL: alone) are borrowed.
Joint *joint_new(Backend *, const JointConfig *, const Parallel *, Dtype compute, uint64_t seed, Error *);
// The same of a rank that holds some of the model's units (joint_units.h): chunk[u] is the number of the part, among
// those that are here, that unit u belongs to; -1: it is elsewhere, and its parameters have names and shapes alone.
// NULL: all of them here, in one part. All ranks of Parallel.pipeline call it.
Joint *joint_new_part(Backend *, const JointConfig *, const Parallel *, const int *chunk, Dtype compute, uint64_t seed,
                      Error *);
void joint_free(Joint *);                // NULL is allowed
bool joint_sees_pictures(const Joint *); // whether what is here of it reads a batch's pixels
Parameters *joint_parameters(const Joint *);
const JointConfig *joint_config(const Joint *);
const Text *joint_text(const Joint *);       // zeroed where no objective needs text
int joint_image_tokens(const JointConfig *); // K: slots of an image in a sequence
// Whether the parts of an objective were declared: its weight is above 0.
bool joint_has(const Joint *, Objective);
const char *joint_check(const JointConfig *, Arena *); // NULL, or what does not fit and what would
// The same for its layers over `tensor` ranks.
const char *joint_check_parallel(const JointConfig *, int tensor, Arena *);

typedef struct JointLoss {
    Tensor *total;             // (1) F32: what to run backwards from
    Tensor *mean[OBJECTIVES];  // (1) F32: sum / count, NULL where absent in this batch
    int64_t count[OBJECTIVES]; // target tokens, pairs, masked patches
} JointLoss;
typedef struct JointPass {
    uint64_t seed;
    bool training; // dropout on
    const int64_t *
        global_count; // (OBJECTIVES) divisors over the whole step (all microbatches, all ranks); NULL: this batch's own
    // A contrastive loss over more pairs than this batch holds is formed elsewhere (joint_pair_features of all, then
    // pair_ring; Gao et al. 2021) and played back here, device: gradients of the features of this batch's pairs, (R,
    // E), and its part of those of the logits' scale and bias (1), weight and divisor included. NULL: the loss is over
    // the batch's own pairs.
    const float *image_gradient, *text_gradient, *scale_gradient, *bias_gradient;
    bool features_only; // of the pairs: no other objective, no loss (joint_units.h: STREAM_TEXT_FEATURES)
    Trace *trace;       // may be NULL: the forward passes of the model's parts are drawn there
} JointPass;
JointLoss joint_loss(Tape *, Joint *, const Batch *, const JointPass *);
void joint_counts(const JointConfig *, const Batch *, int64_t count[OBJECTIVES]);
// FLOP of one step on this batch for training, forward and backward (counted as twice the forward pass), a multiply and
// an add as two; nothing that is computed again. Of parts of a step they add up to those of the whole.
typedef struct JointFlop {
    double vision, text; // the two trunks
    double heads;        // output words, connector, pairs, MAE's decoder
} JointFlop;
static inline double joint_flop_sum(const JointFlop *f) { return f->vision + f->text + f->heads; }
static inline void joint_flop_add(JointFlop *sum, const JointFlop *f) {
    sum->vision += f->vision, sum->text += f->text, sum->heads += f->heads;
}
// Model FLOP: every matrix product and attention, causal rows as the pairs their ranges let through, pictures by
// patches, words where there is a target.
JointFlop joint_flop_parts(const JointConfig *, const Batch *);
double joint_flop(const JointConfig *, const Batch *); // their sum
// As PaLM's appendix B and nanoGPT count: 6 N a token, N all parameters that run over it but its position's, plus
// 12 L C T for attention over rows of T, counted whole; every position of a row counts.
typedef struct JointCount {                            // parameters
    double vision, text, words, connector, pairs, mae; // text: without words and learned positions; vision and mae
                                                       // without positions; words: those of the output
    double all;
} JointCount;
JointCount joint_count(const Joint *); // of the whole model, over all ranks
JointFlop joint_flop_by_count(const JointConfig *, const JointCount *, const Batch *);

// Memory that training takes on a rank at the least, from shapes alone. A pass (a piece of a step) of these sizes:
typedef struct JointSizes {
    double images, mae_images; // seen whole; repainted
    double tokens;             // positions of sequences, of all objectives together
} JointSizes;
typedef struct JointMemory {
    double model, activations; // bytes
} JointMemory;
JointMemory joint_memory(const JointConfig *, const JointSizes *, Dtype compute, const ParallelSizes *);
double joint_weights(const JointConfig *); // how many weights it has at the least

// Features of the pairs of a batch, as joint_loss would compute them: (R, E) F32 each, normalised.
void joint_pair_features(Tape *, Joint *, const Batch *, const JointPass *, Tensor **image_features,
                         Tensor **text_features);
// What the loss over pairs takes from the model: backend, kind, width, weight, and, where they lie until the tape's
// reset, scale and bias. Not on a recording tape.
void joint_pair_ring(Tape *, Joint *, PairRing *);

// For evaluation and generation (tapes that do not record).
Tensor *joint_image_features(Tape *, Joint *, Tensor *images);       // (B, 3, S, S) -> (B, E) F32, normalised
Tensor *joint_text_features(Tape *, Joint *, const Sequences *);     // -> (R, E) F32, normalised
Tensor *joint_image_tokens_forward(Tape *, Joint *, Tensor *images); // (B, 3, S, S) -> (B, K, C of the text)
Tensor *joint_hidden(Tape *, Joint *, const Sequences *, Tensor *image_tokens, const BlockContext *); // -> (R, T, C)
Tensor *joint_token_losses(Tape *, Joint *, const Sequences *,
                           Tensor *image_tokens);      // (R T) F32: -log p of each target, 0 elsewhere
Tensor *joint_logits(Tape *, Joint *, Tensor *hidden); // (N, C) -> (N, V) F32-valued in the compute type
// Host (B, S, S, 3) -> (B, 3, S, S); mirrored (B): which are seen in a mirror, or NULL
Tensor *joint_pixels(Tape *, Joint *, const uint8_t *pixels, const uint8_t *mirrored, int images);
