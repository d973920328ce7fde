/* The inside of a joint model, shared by the files that make it up: joint.c declares it, joint_passes.c runs its parts,
 * joint_run.c its units over the streams of a microbatch, joint_loss.c forms the losses. R rows, T positions, K tokens
 * of an image, C width of the text, U pictures that captions and pairs look at, M repainted ones. */
#pragma once
#include "fusion/joint_units.h"

typedef struct GenerateMemory GenerateMemory; // generate.c
void generate_memory_free(GenerateMemory *);  // NULL is allowed

struct Joint {
    JointConfig config;
    Backend *backend;       // borrowed
    Arena *memory;          // for the model's life
    Arena *host;            // host arrays of one call: rewound at its end
    Parameters *parameters; // owned
    Dtype compute;
    JointUnit *units; // (unit_count)
    int unit_count;
    bool sees_pictures; // a unit that reads pixels is here
    Recompute *recompute; // (unit_count) of each unit's blocks
    Vit vision;
    Mae mae;
    Text text;
    Linear connector[2];      // caption: (Ct, Cv), and for an MLP (Ct, Ct)
    Linear image_projection;  // contrastive: (E, Cv)
    Linear text_projection;   // contrastive: (E, Ct)
    Tensor *log_scale, *bias; // contrastive: (1) each; bias for the sigmoid loss only
    GenerateMemory *speech;   // owned; NULL before it first generates
};

bool joint_needs_text(const JointConfig *);
const char *joint_check_recompute(const JointConfig *, Arena *);        // NULL, or which name is none of a block

// ---- what a microbatch holds ----

typedef struct JointHolds {
    int64_t count[OBJECTIVES]; // of what is summed (joint_counts); 0: the objective does not run
    int seen;                  // U
    bool slots;                // captions look at pictures
    bool features_only;        // of JointPass: then of pairs alone
} JointHolds;
// list: (I) gets the pictures that captions and pairs look at, ascending; NULL: only their number.
JointHolds joint_holds(const JointConfig *, const Batch *, const JointPass *, int32_t *list);
// Bits of the streams that this microbatch has between unit - 1 and unit.
unsigned joint_present(const Joint *, const JointHolds *, int unit);

// ---- one call of joint_run ----

enum { DECODER = JOINT_STREAMS, RUN_CONTEXTS }; // beside one context for each stream: STREAM_MAE in its decoder

typedef struct JointRun {
    Tape *tape;
    Joint *joint;
    const Batch *batch;
    const JointPass *pass;
    JointStreams *streams;
    JointLoss *loss;
    JointHolds holds;
    int32_t *list;          // (U) pictures seen
    int32_t *place;         // (I) place of a picture among those seen, or -1
    Tensor *pixels;         // (I, 3, S, S) once somebody asked for them
    Tensor *repainted;      // (M, 3, S, S) likewise
    int32_t *keep, *masked; // (M, kept), (M, N - kept) likewise
    Residual residual[JOINT_STREAMS]; // of a stream behind a block, whose last sum is not formed yet; else branch NULL
    Recompute recompute;              // of the unit that runs
    BlockContext context[RUN_CONTEXTS];
    bool has_context[RUN_CONTEXTS];
} JointRun;

// What is summed for an objective, added to the losses of the run as mean and as part of the total.
void joint_add_loss(JointRun *, Objective, Tensor *summed);
// The loss over pairs, from (R, E) features of both sides; or what is played back in its place.
void joint_add_pairs(JointRun *, Tensor *image_features, Tensor *text_features);

// ---- parts ----

// (B, N (+1), Cv) of the trunk -> (B, K, Ct)
Tensor *joint_connect(Tape *, Joint *, Tensor *tokens);
// (B, Cv) pooled -> (B, E) F32 of length 1
Tensor *joint_project_images(Tape *, Joint *, Tensor *pooled);
// Rows as the text transformer takes them, with image tokens (B, K, C) in their slots: (R, T, C). image_rows: (R, T) of
// `image_tokens` (Sequences); NULL: none.
Tensor *joint_embed(Tape *, Joint *, const Sequences *, const int32_t *image_rows, Tensor *image_tokens);
// Where the positions of these rows stand and what they see, into the context.
void joint_place_rows(Tape *, const Sequences *, BlockContext *);
// (R, T, Ct) -> (R, E) F32 of length 1, from each row's last token
Tensor *joint_project_text(Tape *, Joint *, const Sequences *, Tensor *hidden);
// -log p of each target: (R T) F32, 0 where there is none
Tensor *joint_score(Tape *, Joint *, const Sequences *, Tensor *hidden);
Tensor *joint_score_sum(Tape *, Joint *, const Sequences *, Tensor *hidden); // text_score_sum
