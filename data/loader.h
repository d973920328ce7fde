/* The streaming loader: threads read, decode, augment, tokenize and pack ahead of the training loop. A batch is a pure
 * function of (datasets, seed, step), whatever the number of threads. Damaged samples are skipped: each is replaced by
 * the next of its order, counted, named in the log (the first few) and reported at the end. */
#pragma once
#include "base/log.h"
#include "data/batch.h"
#include "data/dataset.h"
#include "tokenizers/tokenizer.h"

typedef struct SourceConfig { // one entry of `data` in a training config
    const char *path;         // a dataset folder
    const char *validation;   // another, for validation losses; "" for none
    unsigned objectives;      // bit Objective
    int64_t batch;            // samples of a step; with lm: rows of text of a step
    const char *text;         // how a sample's text is made: "" its .txt member; else a template over the fields of its
                              // .json: "a photo of {class}". Several variants separated by "||": one is drawn
    const char *question,
        *answer;         // templates; with both, caption rows are [image] question answer and only the answer is scored
    const char *one_per; // "", or a json field: each step takes one sample of each of its values (batch = their number)
    bool documents;      // lm: attention stays inside a document and documents end with </s>; false: one stream
    double crop_scale[2]; // least and most share of the area, random resized crop; 1, 1: none, the centre square
    double crop_ratio[2]; // aspect
    double flip;          // probability
    double jitter;        // of brightness, contrast and saturation: factors in [1 - jitter, 1 + jitter]; 0: none
} SourceConfig;

typedef struct LoaderConfig {
    const SourceConfig *sources;
    int source_count;
    bool validation;            // read the sources' validation datasets, without augmentation
    int side;                   // pixels of an image in the batch
    int image_tokens;           // K: slots of an image in a caption row
    int64_t text_length;        // T of lm rows
    int64_t caption_length;     // T of caption rows, slots included
    int64_t contrastive_length; // T of contrastive rows
    uint8_t background[3];
    uint64_t seed;
    int part, parts; // hand out part `part` of `parts` of each step: rows [R part / parts, R (part + 1) / parts) of the
                     // R rows of every objective, and the pictures they need. 0, 1 (or parts 0): all
    int threads;     // workers; >= 1
    int ahead;       // batches prepared ahead
    int64_t cache_bytes;            // decoded pictures and texts kept in memory, at the most; 0: none
    double bad_samples_per_million; // the run stops beyond this (after at least 20 bad samples); with several parts the
                                    // caller adds up loader_tried of all of them and asks loader_budget
} LoaderConfig;

typedef struct Loader Loader;
// The sources, tokenizer (NULL where mae is all that is wanted) and log are borrowed.
Loader *loader_open(const LoaderConfig *, const Tokenizer *, Log *, Error *);
void loader_close(Loader *); // reports what was skipped; NULL is allowed
// The batch of `step`; valid until the next call or close. Steps in order are fast; any other step works (resume).
const Batch *loader_next(Loader *, int64_t step, Error *);
int64_t loader_steps_per_epoch(const Loader *); // of the largest source
int64_t loader_skipped(const Loader *);
// Samples that could not be used, of those tried so far. Each sample of a step counts in one part.
void loader_tried(const Loader *, int64_t *bad, int64_t *draws);
bool loader_budget(int64_t bad, int64_t draws, double per_million, Error *); // false: more than are allowed
double loader_waited(const Loader *);                                        // seconds loader_next waited so far
const char *loader_root(const Loader *, int source);                         // Merkle root of a source's dataset
