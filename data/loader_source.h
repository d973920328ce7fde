/* One source of a loader: its dataset, templates, order, cache and plain text; which sample stands where in a step; and
 * a sample made ready, decoded and cached. */
#pragma once
#include "data/image.h"
#include "data/loader.h"
#include "data/loader_cache.h"
#include "data/loader_order.h"
#include "data/loader_text.h"
#include "data/sample_text.h"

typedef struct Source {
    const SourceConfig *config;
    int index;                          // in the configuration
    bool validation;                    // every sample once, in order, without augmentation
    uint64_t seed;                      // of this source
    Dataset *data;                      // NULL: takes no part
    Template *text, *question, *answer; // NULL: none
    Order order;
    Groups groups; // count 0: not grouped
    Cache *cache;
    LmText lm;
    DecodeOptions decode;
    int side, most_images; // pixels; images of a sample that are used
    bool cropped;          // by draw: pictures are kept as decoded, else as the final square
} Source;

typedef struct Scratch { // of a worker. Zero-initialise it; scratch_free
    Sample sample;
    Buffer bytes, text;
    TokenIds ids, question, answer;
    LmPlan *plans; // (sources)
    int sources;
    Picture *own[SAMPLE_MEMBERS]; // of the sample in hand, those that the cache did not take
    int owned;
} Scratch;

bool source_open(Source *, const LoaderConfig *, int index, int64_t cache_bytes, const Tokenizer *, Log *, Error *);
void source_close(Source *); // zeroed structs are allowed
void scratch_free(Scratch *);

bool source_has(const Source *, Objective);
bool source_says(const Source *); // captions or pairs are made of the sample's text
bool source_asks(const Source *); // its caption rows are questions and answers
// Samples with images, and rows of plain text, in `step`. In validation the last step of a pass has what is left, and
// steps behind it have none.
int64_t source_samples_at(const Source *, int64_t step);
int64_t source_rows_at(const Source *, int64_t step);
int64_t source_steps(const Source *); // of an epoch
// Which sample is the i-th of `step`, `attempt` places on in the order, and of which epoch.
uint64_t source_pick(const Source *, int64_t step, int64_t i, uint64_t attempt, uint64_t *epoch);
// Pictures that the i-th place of `step` has: those of the sample that stands there. A sample that stands in for a
// damaged one shows as many, some of its own again where it has fewer: so the pictures of a step are known, and numbered,
// before anything is read.
int source_images_at(const Source *, int64_t step, int64_t i);
// What keys the draws for a sample in an epoch: augmentation, choice of text, MAE mask of image `image`.
uint64_t source_element(const Source *, uint64_t epoch, uint64_t sample, int image);
// Decoded and ready until the next call with this scratch; texts are not yet chosen.
bool source_prepare(const Source *, uint64_t sample, Scratch *, Prepared *, Error *);
// The picture as the model sees it, (side, side, 3), or its mirror image; returns whether it is to be mirrored.
bool source_show(const Source *, const Picture *, uint64_t element, uint8_t *out);
