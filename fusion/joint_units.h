/* The joint model as a list of units, in the order in which a microbatch goes through them: patch embedding, vision
 * blocks, final norm, pooling, connector, MAE decoder, text embedding, text blocks, heads. A pipeline gives consecutive
 * units to each of its parts; one process runs all of them.
 *
 * What goes from unit to unit is a stream: a tensor per microbatch, absent where the microbatch has nothing for it (no
 * pictures, no rows of an objective). A stream lives from the first unit that writes it to the last that reads it;
 * those alive between two units are what crosses a boundary there. U pictures seen by captions and pairs, N (+1) tokens
 * of one, M repainted pictures, R rows, T positions. */
#pragma once
#include "fusion/joint.h"

typedef enum JointStream {
    STREAM_TRUNK,          // (U, N (+1), Cv): pictures that captions and pairs look at
    STREAM_MAE,            // (M, kept (+1), Cv) through the trunk, then (M, N (+1), Cd) through the decoder
    STREAM_IMAGE_FEATURES, // (R, E) F32, normalised
    STREAM_IMAGE_TOKENS,   // (U, K, Ct)
    STREAM_LM,             // (R, T, Ct)
    STREAM_CAPTION,        // (R, T, Ct)
    STREAM_PAIRS,          // (R, T, Ct)
    STREAM_TEXT_FEATURES,  // (R, E) F32, normalised; where JointPass.features_only
    JOINT_STREAMS
} JointStream; // inside a stack of blocks with sequence parallel: (1, own rows, C)
extern const char *const joint_stream_names[JOINT_STREAMS];

typedef enum UnitKind {
    UNIT_PATCHES, // pixels, patch embedding, class token, positions, norm before the blocks
    UNIT_VISION_BLOCK,
    UNIT_VISION_NORM,
    UNIT_POOLING, // and the projection of images into the shared space
    UNIT_CONNECTOR,
    UNIT_MAE_EMBED, // into the decoder's width, mask tokens, positions
    UNIT_MAE_BLOCK,
    UNIT_MAE_HEAD,   // norm, pixels, loss
    UNIT_TEXT_EMBED, // tokens, image slots, positions
    UNIT_TEXT_BLOCK,
    UNIT_TEXT_HEAD, // norm, words and their losses, projection of texts, loss over pairs
    UNIT_KINDS
} UnitKind;

typedef struct JointUnit {
    UnitKind kind;
    int layer;              // of a block in its stack
    unsigned reads, writes; // bits of JointStream; a stream that is both is changed
    char name[32];          // "vision.blocks.3"
} JointUnit;

enum { MOST_UNITS = 3 * 2048 + 8 }; // three stacks of the deepest that a config may ask for, and the rest

// The units that this model has: those its objectives need. units NULL: only their number.
int joint_units(const JointConfig *, JointUnit *units);
// Streams alive between unit - 1 and unit: written before, read at or behind it. 0 at both ends of the model.
unsigned joint_boundary(const JointUnit *units, int count, int unit);
// What of a block is computed again (JointConfig.recompute, recompute_units); none of what is no block.
Recompute joint_unit_recompute(const JointConfig *, const JointUnit *);
// The unit that a parameter belongs to, by its name ("vision.blocks.3.qkv.weight"); -1: none of this model's.
int joint_unit_of(const JointUnit *units, int count, const char *parameter);

// Streams that do not depend on one another go beside one another on a device that has lanes (Backend.lane): pictures
// and what is made of them, with the captions that look at them, in lane 0; rows of text in the next; texts of pairs in
// a third where there are captions too, pictures that are repainted in a fourth. With fewer lanes the later ones join
// the earlier, but rows of text and texts of pairs never share a lane beside captions: in every layer the gradient of a
// weight is added up over texts of pairs, captions and rows of text in this order, so one lane for the first and the
// last would run in step with the other. From 0 to joint_lanes() - 1.
int joint_lane(const JointConfig *, JointStream);
int joint_lanes(const JointConfig *); // how many are used, of the config's

typedef struct JointStreams {
    Tensor *of[JOINT_STREAMS]; // NULL: absent
} JointStreams;

typedef struct StreamShape {
    int rank;
    Dtype dtype;
    int64_t shape[MAX_RANK];
} StreamShape;
// What a stream is between unit - 1 and unit in a pass over this batch on this rank; false: absent. A rank may have 0
// of shared rows.
bool joint_stream_shape(const Joint *, const Batch *, const JointPass *, JointStream, int unit, StreamShape *);
// The same of all at once: bits of those that are present.
unsigned joint_stream_shapes(const Joint *, const Batch *, const JointPass *, int unit, StreamShape[JOINT_STREAMS]);
// Bits of those whose rows the tensor ranks share out (with sequence parallel) in front of a unit of this kind: inside
// a stack.
unsigned joint_shared_streams(UnitKind next);
// Bytes of those of the streams `which` (bits) that are present there.
double joint_streams_bytes(const Joint *, const Batch *, const JointPass *, int unit, unsigned which);

// Units [first, end): takes the streams that come in and leaves those that go out, all others NULL; the losses of the
// objectives whose heads lie there are added to loss->mean and loss->total (NULL to begin with), loss->count is that of
// the batch. Streams that go out are left even where no gradient is wanted of them. With first 0 and end the number of
// units this is joint_loss; with features_only the features of the pairs go out at that end. Where a stream that should
// come in is NULL, whoever was to make it has failed: then nothing runs, and nothing goes out.
void joint_run(Tape *, Joint *, const Batch *, const JointPass *, int first, int end, JointStreams *, JointLoss *);
