/* What a model says of a picture: a caption, or the answer to a question. */
#pragma once
#include "base/buffer.h"
#include "data/image.h"
#include "fusion/joint.h"
#include "tokenizers/tokenizer.h"

enum { DESCRIBE_TOKENS = 64 }; // the longest answer

// question NULL: a caption. Greedy. `text` is cleared first; the tape must not record.
bool describe_image(Tape *, Joint *, const Tokenizer *, const Image *, const char *question, Buffer *text, Error *);
// The picture as the model sees it in evaluation: the centre square, resampled. out: (S, S, 3).
void joint_view(const JointConfig *, const Image *, uint8_t *out);
