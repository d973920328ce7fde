/* Rows of Sequences from segments: text, and images that each take `image_tokens` slots. Captions, questions with
 * answers, prompts, continuations to be scored and interleaved documents are all this one thing; plain text is packed
 * by sequence_put_piece. Attention is causal, but the slots of images that follow each other see each other whole. */
#pragma once
#include "base/arena.h"
#include "base/error.h"
#include "data/batch.h"
#include "tokenizers/tokenizer.h"

typedef struct SequenceIds { // the ids that rows need beside those of the text
    int32_t pad, begin, end;
} SequenceIds;

typedef struct Segment {
    int image;          // >= 0: the slots of this image of the batch, and no text
    const int32_t *ids; // (count)
    int count;
    bool scored; // the model is asked to predict these tokens
} Segment;

typedef enum { SEQUENCE_OPEN, SEQUENCE_CLOSED } SequenceEnd; // without or with </s>; it is scored if anything is

SequenceIds sequence_ids(const Tokenizer *);
Segment segment_image(int image);
Segment segment_text(const TokenIds *);   // given, not predicted
Segment segment_scored(const TokenIds *); // predicted

// (rows, length), all padding: pad ids, no targets, empty ranges.
void sequences_new(Sequences *, Arena *, int rows, int length, SequenceIds);
// Writes a row that is still padding: the segments in order, <s> in front of the first text. What is too long is cut:
// first the unscored text, from its front, then the end. False where not even the image slots, <s> and, in a closed
// row,
// </s> fit.
bool sequence_put(Sequences *, int row, const Segment *, int count, int image_tokens, SequenceIds, SequenceEnd,
                  Error *);
// One contrastive row: <s> text </s>; a long text is cut so that </s>, the pooled position, stays.
void sequence_put_contrastive(Sequences *, int row, const int32_t *ids, int count, SequenceIds);
// Plain text in a row: ids[0, count) at positions [at, at + count), a document of its own (it sees nothing in front of
// it). `next` is what its last token is to predict, or TOKEN_NONE.
void sequence_put_piece(Sequences *, int row, int at, const int32_t *ids, int count, int32_t next);
