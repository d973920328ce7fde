/* The inside of a joint model, shared by the files that make it up: joint.c declares it, joint_passes.c runs its parts,
 * joint_loss.c forms the loss of a step. R rows, T positions, K tokens of an image, C width of the text. */
#pragma once
#include "fusion/joint.h"

struct Joint {
    JointConfig config;
    Backend *backend;       // borrowed
    Arena *memory;          // for the model's life
    Arena *host;            // host arrays of one call: rewound at its end
    Parameters *parameters; // owned
    Dtype compute;
    Vit vision;
    Mae mae;
    Text text;
    Linear connector[2];      // caption: (Ct, Cv), and for an MLP (Ct, Ct)
    Linear image_projection;  // contrastive: (E, Cv)
    Linear text_projection;   // contrastive: (E, Ct)
    Tensor *log_scale, *bias; // contrastive: (1) each; bias for the sigmoid loss only
};

bool joint_needs_text(const JointConfig *);
// Images of the batch that captions or pairs look at, ascending, into `list` (I; NULL: only count). Returns how many.
int joint_trunk_images(const JointConfig *, const Batch *, int32_t *list);

// (B, N (+1), Cv) of the trunk -> (B, K, Ct)
Tensor *joint_connect(Tape *, Joint *, Tensor *tokens);
// (B, Cv) pooled -> (B, E) F32 of length 1
Tensor *joint_project_images(Tape *, Joint *, Tensor *pooled);
// (R, T, Ct) -> (R, E) F32 of length 1, from each row's last token
Tensor *joint_project_text(Tape *, Joint *, const Sequences *, Tensor *hidden);
// -log p of each target: (R T) F32, 0 where there is none
Tensor *joint_score(Tape *, Joint *, const Sequences *, Tensor *hidden);
