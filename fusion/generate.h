/* Text from a joint model, token by token, over a cache of keys and values. Prompts interleave text and images as
 * training rows do (data/sequence.h). What one prompt gives does not depend on what else is in the batch: each row sees
 * its own positions alone, and draws are keyed by the prompt's number. (On a GPU products of other sizes round
 * otherwise.) */
#pragma once
#include "data/sequence.h"
#include "fusion/joint.h"
#include "text/sampling.h"

typedef struct Prompt {
    const Segment *segments; // (count); images are counted within the prompt
    int count;
    const uint8_t *pixels; // (images, S, S, 3) RGB, or NULL
    int images;
    uint64_t number; // keys its draws
} Prompt;

typedef struct GenerateOptions {
    Sampling sampling;
    int64_t max_tokens; // new tokens of a prompt, at the most
    int64_t batch;      // prompts run together, at the most
} GenerateOptions;

// Positions a prompt takes, <s> and image slots counted.
int64_t prompt_length(const JointConfig *, const Prompt *);

// Appends the new tokens of prompt i to out[i], without </s>, which ends a text; so do max_tokens and the context. The
// tape must not record. A prompt that does not fit into the context is an error.
bool generate_words(Tape *, Joint *, SequenceIds special, const Prompt *, int count, const GenerateOptions *,
                    TokenIds *out, Error *); // without a tokenizer; special.end -1: texts do not end by themselves
bool generate(Tape *, Joint *, const Tokenizer *, const Prompt *, int count, const GenerateOptions *, TokenIds *out,
              Error *);
