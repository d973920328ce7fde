/* What a loader hands out: plain host arrays. A training sequence is a row of positions; each holds a text token or
 * stands for one image token (a slot). One type serves plain text, captions, questions with answers and interleaved
 * documents, from the loader to the mask of the attention. */
#pragma once
#include <stdint.h>

enum { TOKEN_NONE = -1 }; // not a token: an image slot in `tokens`, not scored in `targets`

typedef enum Objective { OBJECTIVE_LM, OBJECTIVE_CAPTION, OBJECTIVE_CONTRASTIVE, OBJECTIVE_MAE, OBJECTIVES } Objective;
extern const char *const objective_names[OBJECTIVES]; // "lm", "caption", "contrastive", "mae"

typedef struct Sequences {
    int rows, length;     // R, T; rows 0: none
    int32_t *tokens;      // (R, T) ids; TOKEN_NONE at image slots; padding holds the pad id
    int32_t *targets;     // (R, T) the id to predict at this position (the next token), or TOKEN_NONE
    int32_t *positions;   // (R, T) position inside its document
    int32_t *range;       // (R, T, 2) keys [first, end) this position attends to; padding: empty
    int32_t *image_rows;  // (R, T) at image slots image * K + k, K tokens an image after the connector; else -1
    int32_t *ends;        // (R) index of the last real token (CLIP's pooled position)
    int64_t target_count; // targets that are not TOKEN_NONE
    int64_t token_count;  // real tokens, image slots not counted
} Sequences;

typedef struct Batch {
    int64_t step;
    int images, side;               // I, S
    uint8_t *pixels;                // (I, S, S, 3) RGB
    uint8_t *mirrored;              // (I) 1: the step sees the mirror image; NULL: none is mirrored
    uint64_t *image_keys;           // (I) global element of each image: keys its MAE mask
    Sequences lm;                   // plain text, packed
    Sequences caption;              // image slots and text; also questions with answers
    Sequences contrastive;          // one caption a row
    int32_t *contrastive_image;     // (contrastive.rows) which image each caption belongs to
    int mae_images;                 // how many of the images are also reconstructed
    int32_t *mae_image;             // (mae_images)
    int part, parts;                // which part of the step's rows this is; parts 0: all of them
    uint64_t first_row[OBJECTIVES]; // global number of each objective's first row here, keys dropout
    int64_t all_rows[OBJECTIVES];   // rows of each objective in the whole step, over all parts (mae: pictures)
    int64_t all_images;             // pictures in the whole step
    int64_t seen;                   // pictures that captions and pairs look at; each counts in one part
    const uint64_t *image_numbers;  // (I) number of each image in the step, ascending: keys the trunk's dropout; NULL:
                                    // 0, 1, 2, ...
    const char **image_sources;     // (I) "dataset/key", for messages
} Batch;

// The first of `rows` rows that belongs to part `part` of `parts`; part `parts`: behind the last.
static inline int64_t batch_share(int64_t rows, int64_t part, int64_t parts) { return rows * part / parts; }
