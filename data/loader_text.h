/* Plain text for language modelling: a source's texts, tokenised when it is opened and kept as ids, and rows cut from
 * them. With `documents`, an epoch is all texts in a keyed order, each <s> text </s>, laid end to end and cut into rows
 * of T; attention stays inside a document. Without, the texts in the order of the dataset are one stream; an epoch is
 * its windows of T, from a drawn offset, in a keyed order. A text of several variants (template or .txt members) is
 * several documents. */
#pragma once
#include "base/threads.h"
#include "data/loader_order.h"
#include "base/log.h"
#include "base/philox.h"
#include "data/sequence.h"
#include "data/template.h"

typedef struct LmText {
    int32_t *ids;       // (first[documents])
    int64_t *first;     // (documents + 1)
    int64_t documents;  // those with text
    int64_t length;     // T
    int64_t rows;       // of an epoch, at least 1
    int64_t unreadable; // samples that could not be read
    Order order;        // of documents, or of windows
    bool packed;        // documents, not a stream
    SequenceIds special;
} LmText;

typedef struct LmPlan { // where documents lie in one epoch's row of texts; each worker has its own. Zero-initialise it
    uint64_t epoch;
    int64_t *end; // (documents) in the epoch's order; NULL: not made yet
} LmPlan;

typedef struct LmOptions {
    const Template *text; // NULL: .txt members
    const Tokenizer *tokenizer;
    Log *log;
    uint64_t seed;
    int64_t length;        // T, tokens
    bool documents, mixed; // mixed: false for validation, texts come in order
    int threads;
} LmOptions;

bool lm_text_open(LmText *, const Dataset *, const LmOptions *, Error *);
void lm_text_free(LmText *); // zeroed structs are allowed
// Writes row `row` of `epoch` into row `at` of the sequences.
void lm_text_row(const LmText *, LmPlan *, uint64_t epoch, uint64_t row, Sequences *, int at);
